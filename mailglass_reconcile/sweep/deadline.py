"""Until when a sweep works."""

from __future__ import annotations

import time


class Deadline:
    """The end of a sweep, on this process's monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether nothing new may begin."""
        return self.left_seconds <= 0

    @property
    def left_seconds(self) -> float:
        """How many seconds are left; below 0 after the end."""
        return self._end - time.monotonic()

    @property
    def left_ms(self) -> int:
        """How many milliseconds a statement may take: those that are left, or a second."""
        return max(1_000, int(self.left_seconds * 1000))

    def stop(self) -> None:
        """End now. Safe in a signal handler."""
        self._end = time.monotonic()
