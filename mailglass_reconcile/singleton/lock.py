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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from mailglass_reconcile import runtime
from mailglass_reconcile.pubsub import TIMEOUT_SECONDS, fail_fast_client, reason, within
from mailglass_reconcile.store.engines import database_of

logger = logging.getLogger(__name__)

PREFIX = "mailglass_reconcile:lock:"
LOCK_SECONDS = 60
RENEW_SECONDS = 20

# The lock's value is a mark of one character, "q" queued or "r" running, and the owner: the task id of a request, or
# the name of a run, which has a token of its own before the id. Anything else, of another kind or length of life, was
# left by something that will not free it, and is taken over.
_TAKE = r"""
local value, left = redis.pcall('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
local held = type(value) == 'string' and #value <= 300 and value:find('^[qr][\32-\126]+$')
  and left > 0 and left <= ARGV[3] * 1000
local ours = held and (value:sub(2) == ARGV[1]
  or value:sub(1, 1) == 'q' and (value:sub(2) == ARGV[4] or ARGV[5] == '1'))
if held and not ours then return value:sub(2) end
redis.call('SET', KEYS[1], ARGV[2] .. ARGV[1], 'EX', ARGV[3])
return ARGV[1]
"""

# How many others hold the lock under one name, the ranges of a fan-out, stands under the lock's key and that name.
_SHARE = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) == ARGV[1] then
  return redis.call('SET', KEYS[1] .. ':' .. ARGV[1], ARGV[3], 'EX', ARGV[2])
end
"""

_READ = """
local value = redis.pcall('GET', KEYS[1])
return {type(value) == 'string' and value or '', redis.call('PTTL', KEYS[1])}
"""

_RENEW = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) == ARGV[1] then
  redis.call('EXPIRE', KEYS[1] .. ':' .. ARGV[1], ARGV[2])
  return redis.call('EXPIRE', KEYS[1], ARGV[2])
end
"""

_RELEASE = """
local value, sharing = redis.call('GET', KEYS[1]), KEYS[1] .. ':' .. ARGV[1]
if not value or value:sub(2) ~= ARGV[1] then return end
local others = tonumber(redis.call('GET', sharing) or '0') or 0
if others == 0 then return redis.call('DEL', KEYS[1], sharing) end
redis.call('SET', sharing, others - 1, 'EX', ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


UNKNOWN = "?"
"""The task id of a holder whose value no sweep writes."""


def key_of(tenant_id: str | None) -> str:
    """Return the key of the lock of one tenant's sweep, or of that of all: the deployment and the tenant.

    Raises:
        ConfigurationError: There is no database to tell deployments apart by.
    """
    which = "all" if tenant_id is None else f"tenant:{digest(tenant_id)}"
    return f"{PREFIX}{_deployment()}:{which}"


def _deployment() -> str:
    """Tell installations on one Redis apart: by the database and the schema, not by options of the connection."""
    return digest(f"{database_of(runtime.get_engine())}#{runtime.get_settings().database_schema}")


def digest(text: str) -> str:
    """Return what stands for a text of any length in a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Holder(NamedTuple):
    """Who has a lock: the task's id, whether it runs or is queued, and for how many seconds more; None is forever."""

    task_id: str
    running: bool
    seconds_left: float | None


def holder_of(client: Redis, key: str) -> Holder | None:
    """Return who has the lock *key*, or None if it is free; see `UNKNOWN`.

    Raises:
        RedisError: Redis refuses; also OSError if it does not answer within a second.
    """
    ours = fail_fast_client(client)
    value, left = within(TIMEOUT_SECONDS, lambda: ours.eval(_READ, 1, key))
    if left == -2:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    known = re.fullmatch("[qr][ -~]{1,299}", text)
    task_id = task_of(text[1:]) if known else UNKNOWN
    return Holder(task_id, text[:1] == "r", None if left < 0 else left / 1000)


def new_run(task_id: str) -> str:
    """Return the name of a run, by which two runs of one task id (a message that came twice) are two owners."""
    return f"{uuid4().hex}:{task_id}"


def task_of(owner: str) -> str:
    """Return the task id of a request or of a run."""
    return re.sub("^[0-9a-f]{32}:", "", owner)


class LockBackend:
    """The lock in Redis: taken again by its owner, renewed and released by nobody else.

    Every call waits for a second at most, whatever the client's timeouts, and then does without the lock.
    """

    def __init__(self, client: Redis) -> None:
        """Use the Redis of *client*; nothing connects yet."""
        self._client = fail_fast_client(client)
        self._warned = False
        self._in_the_way: dict[str, tuple[str, float]] = {}
        """Who has each lock in the way of requests, and since when this process knows."""

    def reserve(self, key: str, owner: str) -> str:
        """Take the lock for a request that is about to be queued; otherwise as `take`."""
        return self._holder(key, owner, "q", reserved=False)

    def take(self, key: str, owner: str, *, reserved: bool = False) -> str:
        """Take the lock for a minute, and return who has it: *owner*, also where Redis cannot be asked.

        Args:
            key: The lock.
            owner: The run that starts: see `new_run`.
            reserved: Whether it held the lock when it was queued. Then it goes before one that is queued still, or
                else a queue longer than a minute would let each request give way to the next, forever.
        """
        return self._holder(key, owner, "r", reserved=reserved)

    def renew(self, key: str, owner: str) -> None:
        """Give *owner* another minute, if the lock is still its own."""
        self._call(_RENEW, key, owner, LOCK_SECONDS)

    def share(self, key: str, owner: str, others: int) -> None:
        """Let *others* hold the lock as *owner* as well: only the last release of all of them frees it."""
        self._call(_SHARE, key, owner, LOCK_SECONDS, others)

    def release(self, key: str, owner: str) -> None:
        """Free the lock, if it is still *owner*'s and nobody else holds it under that name."""
        self._call(_RELEASE, key, owner, LOCK_SECONDS)

    @contextmanager
    def kept(self, key: str, owner: str) -> Iterator[None]:
        """Renew *owner*'s lock every 20 seconds while the block runs, and release it at the end."""
        done = threading.Event()
        threading.Thread(target=self._renew, args=(key, owner, done), daemon=True, name=f"renew {key}").start()
        try:
            yield
        finally:
            done.set()
            self.release(key, owner)

    def _renew(self, key: str, owner: str, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            self.renew(key, owner)

    def warn_if_endless(self, key: str, holder: str, seconds: float) -> None:
        """Log it if *holder* has had the lock in the way of requests for longer than *seconds*, a sweep's longest."""
        known, since = self._in_the_way.get(key, (None, 0.0))
        if known != holder:
            self._in_the_way[key] = (holder, time.monotonic())
        elif (lasted := time.monotonic() - since) > seconds:
            logger.warning(
                "sweeps have been duplicates of task %s for %d s, longer than a sweep can last: if that task does not"
                " run, find out who keeps the key %s in the lock's Redis, and delete it",
                task_of(holder),
                lasted,
                key,
            )

    def _holder(self, key: str, owner: str, mark: str, *, reserved: bool) -> str:
        answer = self._call(_TAKE, key, owner, mark, LOCK_SECONDS, task_of(owner), int(reserved))
        holder: str = answer.decode() if isinstance(answer, bytes) else answer or owner
        if holder == owner:
            self._in_the_way.pop(key, None)
        return holder

    def _call(self, script: str, key: str, *arguments: str | int) -> Any:
        try:
            answer = within(TIMEOUT_SECONDS, lambda: self._client.eval(script, 1, key, *arguments))
        except (RedisError, OSError) as error:
            if not self._warned:
                self._warned = True
                needed = f"the commands EVAL, GET, PTTL, SET, EXPIRE and DEL on the keys {PREFIX}*"
                logger.warning("the sweep's lock cannot be used (%s); sweeping without it", reason(error, needed))
            return None
        self._warned = False
        return answer
