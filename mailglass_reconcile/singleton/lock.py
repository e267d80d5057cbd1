"""The lock in Redis that keeps a sweep from being queued or run twice.

It is a convenience that saves work. Losing it, or Redis, costs the lock and never a sweep: the database
keeps overlapping sweeps correct.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from mailglass_reconcile.pubsub import PATIENCE_SECONDS, impatient, reason, within

logger = logging.getLogger(__name__)

PREFIX = "mailglass_reconcile:lock:"
LOCK_SECONDS = 60
RENEW_SECONDS = 20

# The lock's value is the owner's task id, behind a mark of one character: "q" queued, "r" running.
_TAKE = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) ~= ARGV[1] and not (ARGV[4] == '1' and value:sub(1, 1) == 'q') then return value:sub(2) end
redis.call('SET', KEYS[1], ARGV[2] .. ARGV[1], 'EX', ARGV[3])
return ARGV[1]
"""

_RENEW = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end
"""

_RELEASE = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
"""


class LockBackend:
    """The lock in Redis: taken again by its owner, renewed and released by nobody else.

    Every call waits for a second at most, whatever the client's timeouts, and then does without the lock.
    """

    def __init__(self, client: Redis) -> None:
        """Use the Redis of *client*; nothing connects yet."""
        self._client = impatient(client)
        self._warned = False

    def reserve(self, key: str, owner: str) -> str:
        """Take the lock for a request that is about to be queued; otherwise as `take`."""
        return self._holder(_TAKE, key, owner, "q", LOCK_SECONDS, 0)

    def take(self, key: str, owner: str, *, reserved: bool = False) -> str:
        """Take the lock for a minute, and return who has it: *owner*, also where Redis cannot be asked.

        Args:
            key: The lock.
            owner: The id of the task that starts.
            reserved: Whether it held the lock when it was queued. Then it goes before one that is queued still, or
                else a queue longer than a minute would let each request give way to the next, for ever.
        """
        return self._holder(_TAKE, key, owner, "r", LOCK_SECONDS, int(reserved))

    def renew(self, key: str, owner: str) -> None:
        """Give *owner* another minute, if the lock is still its own."""
        self._call(_RENEW, key, owner, LOCK_SECONDS)

    def release(self, key: str, owner: str) -> None:
        """Free the lock, if it is still *owner*'s."""
        self._call(_RELEASE, key, owner)

    @contextmanager
    def kept(self, key: str, owner: str) -> Iterator[None]:
        """Renew *owner*'s lock every 20 seconds while the block runs, and release it at the end."""
        done = threading.Event()
        threading.Thread(target=self._renew, args=(key, owner, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()
            self.release(key, owner)

    def _renew(self, key: str, owner: str, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            self.renew(key, owner)

    def _holder(self, script: str, key: str, owner: str, *arguments: str | int) -> str:
        holder = self._call(script, key, owner, *arguments)
        return holder.decode() if isinstance(holder, bytes) else holder or owner

    def _call(self, script: str, key: str, *arguments: str | int) -> Any:
        try:
            answer = within(PATIENCE_SECONDS, lambda: self._client.eval(script, 1, key, *arguments))
        except (RedisError, OSError) as error:
            if not self._warned:
                self._warned = True
                needed = f"the commands EVAL, GET, PTTL, SET, EXPIRE and DEL on the keys {PREFIX}*"
                logger.warning("the sweep's lock cannot be used (%s); sweeping without it", reason(error, needed))
            return None
        self._warned = False
        return answer
