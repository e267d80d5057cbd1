"""The lock in Redis that prevents a sweep from being queued or run twice.

It is a convenience that saves work. Without it, or without Redis, sweeps still run, and the database keeps overlapping
sweeps correct.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from uuid import uuid4

from redis import Redis
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import RedisUnavailableError
from mailglass_reconcile.pubsub import reason
from mailglass_reconcile.store.engines import database_identity

logger = logging.getLogger(__name__)

PREFIX = "mailglass_reconcile:lock:"
LOCK_SECONDS = 60
_SECONDS = re.compile("[0-9]{1,10}")
TRIES = 3
"""Attempts to acquire the lock: its holder may release it between two commands."""

PERMISSIONS = f"the commands SET, GET, PTTL, PEXPIRE, DEL, EVALSHA and SCRIPT LOAD on the keys {PREFIX}*"


# redis-py's lock cannot change its token, and between a release and an acquire, another request could be queued.
_REPLACE_HOLDER = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


def lock_key(tenant_id: str | None) -> str:
    """Return the key of the lock for sweeps of a tenant, or of all tenants: it names the deployment and the tenant."""
    scope = "all" if tenant_id is None else f"tenant:{digest(tenant_id)}"
    return f"{PREFIX}{_deployment()}:{scope}"


def _deployment() -> str:
    """Return an id of this installation, which may share Redis with others: a digest of database and schema."""
    return digest(f"{database_identity(runtime.get_engine())}#{runtime.get_settings().database_schema}")


def digest(text: str) -> str:
    """Return a digest that represents a text of any length in a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def queued_token(task_id: str) -> str:
    """Return the token, which is the lock's value, of a queued request."""
    return f"queued {task_id}"


def running_token(task_id: str) -> str:
    """Return a new token for a run, with the time; a task that is delivered twice has two."""
    return f"running {task_id} {uuid4().hex[:12]} {int(time.time())}"


class Holder(NamedTuple):
    """The holder of a lock: its token, and the seconds until the lock expires."""

    token: str
    seconds_left: float

    @property
    def task_id(self) -> str:
        """The task that acquired it; `unknown` if the value is not a token of ours."""
        return self.token.partition(" ")[2].partition(" ")[0] or "unknown"

    @property
    def is_queued(self) -> bool:
        return self.token.startswith("queued ")

    @property
    def acquired_at(self) -> float | None:
        """When it was acquired, in seconds since 1970: a run's token has it, and a queued request's is not extended.

        None if the value is not a token of ours: anybody who may write to Redis may have set it.
        """
        if self.is_queued:
            return time.time() - LOCK_SECONDS + self.seconds_left
        seconds = self.token.rpartition(" ")[2]
        return float(seconds) if self.token.startswith("running ") and _SECONDS.fullmatch(seconds) else None


def load_holder(client: Redis, key: str) -> Holder | None:
    """Return the holder of the lock *key*, or None if it is free."""
    value: Any = client.get(key)  # redis-py before 8.2 types a response as if it could be awaited
    milliseconds_left: Any = client.pttl(key)
    if value is None:
        return None
    token = value.decode(errors="replace") if isinstance(value, bytes) else value
    return Holder(token, milliseconds_left / 1000)


def load_sweep_holder() -> Holder | None:
    """Return the holder of the lock for sweeps of all tenants, or None if it is free."""
    try:
        return load_holder(runtime.get_redis(), lock_key(None))
    except (RedisError, OSError) as error:
        raise RedisUnavailableError(f"the lock cannot be read ({reason(error, PERMISSIONS)})") from None


def probe_lock(client: Redis) -> None:
    """Acquire, extend and release a lock that no sweep uses, to find missing permissions."""
    lock = client.lock(f"{PREFIX}doctor", timeout=1, blocking=False)
    if lock.acquire():
        load_holder(client, lock.name)
        with suppress(LockError):
            lock.extend(1, replace_ttl=True)
            lock.release()


class LockBackend:
    """Acquires, extends and releases redis-py's locks by token: only the token that acquired one can release it.

    If Redis does not respond, a call takes as long as the client's timeout, and continues without the lock.
    """

    renew_seconds = 20.0
    """Seconds between two extensions of a lock while its run goes on."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._replace_holder = client.register_script(_REPLACE_HOLDER)
        self._warned = False

    def reserve(self, key: str, task_id: str) -> str | None:
        """Acquire the lock for a request before it is enqueued; return None, or the id of the task that holds it."""
        return self._acquire(key, queued_token(task_id), lambda holder: False)

    def acquire(self, key: str, token: str, *, reserved: bool = False) -> str | None:
        """Acquire the lock for a run that starts; return None, or the id of the task that holds it.

        A run whose request held the lock when it was enqueued (*reserved*) replaces a request that is still queued.
        Otherwise, in a queue longer than a minute, each run would yield to the next request, forever.
        """
        task_id = Holder(token, LOCK_SECONDS).task_id
        return self._acquire(key, token, lambda holder: holder.is_queued and (reserved or holder.task_id == task_id))

    def _acquire(self, key: str, token: str, may_replace: Callable[[Holder], bool]) -> str | None:
        holder = None
        with self._ignore_redis_errors():
            for _ in range(TRIES):
                if self._lock(key, token).acquire(token=token):
                    return None
                holder = load_holder(self._client, key)
                if holder and holder.token == token:  # redis-py retried after a lost response, and had acquired it
                    return None
                if holder and not may_replace(holder):
                    return holder.task_id
                if holder and self._replace_holder(keys=[key], args=[holder.token, token, LOCK_SECONDS * 1000]):
                    return None
        return holder.task_id if holder else None

    def extend(self, key: str, token: str) -> None:
        """Extend the lock to another minute if it still has this *token*."""
        with self._ignore_redis_errors():
            self._lock(key, token).extend(LOCK_SECONDS, replace_ttl=True)

    def release(self, key: str, token: str) -> None:
        """Release the lock if it still has this *token*."""
        with self._ignore_redis_errors():
            self._lock(key, token).release()

    @contextmanager
    def renewing(self, key: str, token: str, is_shared: Callable[[], bool]) -> Iterator[None]:
        """Extend the lock every 20 seconds while the block runs, and release it at the end.

        A shared lock is extended at the end instead, so that it expires a minute after its last process has ended.
        """
        released = threading.Event()
        threading.Thread(target=self._renew, args=(key, token, released), daemon=True, name=f"renew {key}").start()
        try:
            yield
        finally:
            released.set()
            (self.extend if is_shared() else self.release)(key, token)

    def _renew(self, key: str, token: str, released: threading.Event) -> None:
        while not released.wait(self.renew_seconds):
            self.extend(key, token)

    def _lock(self, key: str, token: str) -> Lock:
        """Return a redis-py Lock that acts as the holder of *token*, even if another process acquired it."""
        lock: Lock = self._client.lock(key, timeout=LOCK_SECONDS, blocking=False, thread_local=False)
        lock.local.token = token.encode()
        return lock

    @contextmanager
    def _ignore_redis_errors(self) -> Iterator[None]:
        """Continue without the lock after an error of Redis; log the first of consecutive errors."""
        try:
            yield
        except LockError:  # it has expired, and another process may hold it
            self._warned = False
        except (RedisError, OSError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("the sweep's lock cannot be used (%s); sweeping without it", reason(error, PERMISSIONS))
        else:
            self._warned = False
