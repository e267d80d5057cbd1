"""A circuit breaker: what keeps a process from waiting again and again for a server that does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mailglass_reconcile.pubsub.library import redis

PAUSE_SECONDS = 5.0
"""After a failure, this process leaves the server alone for so long."""

QUICK_SECONDS = 0.1
"""A failure that took less, such as a refused connection, holds up nobody, so the next call may come sooner."""


class PausedError(OSError):
    """The server failed a moment ago and is not asked again yet."""


class Breaker:
    """Lets calls through until one fails; then one call every five seconds, until one is answered.

    After failures that took no time, the pauses begin at none and double up to five seconds. A refusal, such as a
    missing right, is an answer.
    """

    def __init__(self) -> None:
        """Let calls through."""
        self._failures = 0
        self._next_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether the last call was not answered."""
        return self._failures > 0

    def require(self) -> None:
        """Return if a call may be made now.

        Raises:
            PausedError: Not yet.
        """
        if self._failures and time.monotonic() < self._next_at:
            raise PausedError("Redis failed a moment ago")

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make a call in this block if one may be made now, and note whether the server answered it.

        Raises:
            PausedError: Not yet.
        """
        self.require()
        began = time.monotonic()
        if self._failures:  # until this call is answered, no other is made
            self._next_at = began + PAUSE_SECONDS
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self.fail(time.monotonic() - began)
            raise
        except redis.RedisError:
            self._failures = 0
            raise
        self._failures = 0

    def fail(self, seconds: float) -> None:
        """Note a call that was not answered within so many *seconds*."""
        pause = 0.05 * (2 ** min(self._failures, 10) - 1) if seconds < QUICK_SECONDS else PAUSE_SECONDS
        self._failures += 1
        self._next_at = time.monotonic() + min(pause, PAUSE_SECONDS)
