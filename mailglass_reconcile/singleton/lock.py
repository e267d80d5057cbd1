"""The lock in Redis that keeps a sweep from being queued or run twice.

It is a convenience that saves work. Losing it, or Redis, costs the lock and never a sweep: the database
keeps overlapping sweeps correct.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from uuid import uuid4

from redis import Redis
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import RedisUnavailableError
from mailglass_reconcile.pubsub import reason
from mailglass_reconcile.store.engines import database_of

logger = logging.getLogger(__name__)

PREFIX = "mailglass_reconcile:lock:"
LOCK_SECONDS = 60
RENEW_SECONDS = 20
_SECONDS = re.compile("[0-9]{1,10}")
TRIES = 3
"""A holder may vanish between two commands: then the lock is asked for again."""

RIGHTS = f"the commands SET, GET, PTTL, PEXPIRE, DEL, EVALSHA and SCRIPT LOAD on the keys {PREFIX}*"


# Redis-py's lock cannot change its token; between a release and an acquire, another request would be queued.
_HAND_OVER = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


def key_of(tenant_id: str | None) -> str:
    """Return the key of the lock of one tenant's sweep, or of that of all: the deployment and the tenant."""
    which = "all" if tenant_id is None else f"tenant:{digest(tenant_id)}"
    return f"{PREFIX}{_deployment()}:{which}"


def _deployment() -> str:
    """Tell installations on one Redis apart: by the database and the schema, not by options of the connection."""
    return digest(f"{database_of(runtime.get_engine())}#{runtime.get_settings().database_schema}")


def digest(text: str) -> str:
    """Return what stands for a text of any length in a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def queued(task_id: str) -> str:
    """Return the token, which is the lock's value, of a request that waits in the queue."""
    return f"queued {task_id}"


def running(task_id: str) -> str:
    """Return a token of a run, with the time; two runs of one task id, a message that came twice, have two."""
    return f"running {task_id} {uuid4().hex[:12]} {int(time.time())}"


class Holder(NamedTuple):
    """Who has a lock: the token, and for how many seconds more."""

    token: str
    seconds_left: float

    @property
    def task_id(self) -> str:
        """The task that took it; `unknown` if the value is not a token of ours."""
        return self.token.partition(" ")[2].partition(" ")[0] or "unknown"

    @property
    def is_queued(self) -> bool:
        return self.token.startswith("queued ")

    @property
    def since(self) -> float | None:
        """When it was taken, in seconds since 1970: a run notes it, and a request that is queued is not renewed.

        None if the value is not a token of ours: anybody who may write to Redis may have set it.
        """
        if self.is_queued:
            return time.time() - LOCK_SECONDS + self.seconds_left
        taken_at = self.token.rpartition(" ")[2]
        return float(taken_at) if self.token.startswith("running ") and _SECONDS.fullmatch(taken_at) else None


def holder_of(client: Redis, key: str) -> Holder | None:
    """Return who has the lock *key*, or None if it is free."""
    value, left = client.get(key), client.pttl(key)
    if value is None:
        return None
    token = value.decode(errors="replace") if isinstance(value, bytes) else value
    return Holder(token, left / 1000)


def sweep_holder() -> Holder | None:
    """Return who has the lock of the sweeps of all tenants, or None if it is free."""
    try:
        return holder_of(runtime.get_redis(), key_of(None))
    except (RedisError, OSError) as error:
        raise RedisUnavailableError(f"the lock cannot be read ({reason(error, RIGHTS)})") from None


def try_lock(client: Redis) -> None:
    """Take, extend and release a lock that no sweep uses."""
    lock = client.lock(f"{PREFIX}doctor", timeout=1, blocking=False)
    if lock.acquire():
        holder_of(client, lock.name)
        with suppress(LockError):
            lock.extend(1, replace_ttl=True)
            lock.release()


class LockBackend:
    """redis-py's lock, one for each key: taken by a token, extended and released by the same token only.

    A call that Redis does not answer takes as long as the client waits, and then does without the lock.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._hand_over = client.register_script(_HAND_OVER)
        self._warned = False

    def reserve(self, key: str, task_id: str) -> str | None:
        """Take the lock for a request that is about to be queued; return None, or the task that has it already."""
        return self._take(key, queued(task_id), lambda holder: False)

    def take(self, key: str, token: str, *, reserved: bool = False) -> str | None:
        """Take the lock for a run that starts; return None, or the task that has it instead.

        A run whose request held the lock when it was queued (*reserved*) goes before one that is only queued still, or
        else a queue longer than a minute would let each request give way to the next, forever.
        """
        task_id = Holder(token, LOCK_SECONDS).task_id
        return self._take(key, token, lambda holder: holder.is_queued and (reserved or holder.task_id == task_id))

    def _take(self, key: str, token: str, goes_before: Callable[[Holder], bool]) -> str | None:
        holder = None
        with self._without_it_if_need_be():
            for _ in range(TRIES):
                if self._lock(key, token).acquire(token=token):
                    return None
                holder = holder_of(self._client, key)
                if holder and holder.token == token:  # a client that tries again after a lost answer has taken it
                    return None
                if holder and not goes_before(holder):
                    return holder.task_id
                if holder and self._hand_over(keys=[key], args=[holder.token, token, LOCK_SECONDS * 1000]):
                    return None
        return holder.task_id if holder else None

    def extend(self, key: str, token: str) -> None:
        """Give the lock another minute, if it still has this *token*."""
        with self._without_it_if_need_be():
            self._lock(key, token).extend(LOCK_SECONDS, replace_ttl=True)

    def release(self, key: str, token: str) -> None:
        """Free the lock, if it still has this *token*."""
        with self._without_it_if_need_be():
            self._lock(key, token).release()

    @contextmanager
    def kept(self, key: str, token: str, is_shared: Callable[[], bool]) -> Iterator[None]:
        """Extend the lock every 20 seconds while the block runs; at its end release it, or extend it if it is shared.

        A shared lock is not released: it expires a minute after the last process that shared it.
        """
        done = threading.Event()
        threading.Thread(target=self._renew, args=(key, token, done), daemon=True, name=f"renew {key}").start()
        try:
            yield
        finally:
            done.set()
            (self.extend if is_shared() else self.release)(key, token)

    def _renew(self, key: str, token: str, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            self.extend(key, token)

    def _lock(self, key: str, token: str) -> Lock:
        """Return redis-py's lock, as it is in the hands of whom has taken it with *token*, perhaps another process."""
        lock: Lock = self._client.lock(key, timeout=LOCK_SECONDS, blocking=False, thread_local=False)
        lock.local.token = token.encode()
        return lock

    @contextmanager
    def _without_it_if_need_be(self) -> Iterator[None]:
        try:
            yield
        except LockError:  # it has expired, and may be another process's
            self._warned = False
        except (RedisError, OSError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("the sweep's lock cannot be used (%s); sweeping without it", reason(error, RIGHTS))
        else:
            self._warned = False
