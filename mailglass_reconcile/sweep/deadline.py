"""The deadline of a sweep."""

from __future__ import annotations

import time


class Deadline:
    """The end of a sweep, on this process's monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """True if no further work may begin."""
        return self.remaining_seconds <= 0

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self._end - time.monotonic()

    @property
    def remaining_ms(self) -> int:
        """The timeout of a statement in milliseconds: the remaining time, but at least a second."""
        return max(1_000, int(self.remaining_seconds * 1000))

    def stop(self) -> None:
        """End now. Safe in a signal handler."""
        self._end = time.monotonic()
