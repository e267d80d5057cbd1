"""Until when a sweep works: its deadline, and that of the part that it is in."""

from __future__ import annotations

import math
import time

SHARE_OF_REFUSED = 0.1
"""The last part of a sweep's time, which belongs to what the database has refused before."""


class Deadline:
    """The end of a sweep, on this process's monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._end_of_part = math.inf

    def begin_part(self, *, with_refused_to_come: bool) -> None:
        """Begin another part; it has all of the time that is left, or leaves some to those that were refused."""
        seconds = self._end - self._began
        self._end_of_part = self._end - SHARE_OF_REFUSED * seconds if with_refused_to_come else math.inf

    @property
    def is_over(self) -> bool:
        """Whether nothing new may begin in this part."""
        return self.left_seconds <= 0

    @property
    def left_seconds(self) -> float:
        """How many seconds this part has left; below 0 after its end."""
        return min(self._end, self._end_of_part) - time.monotonic()

    @property
    def left_ms(self) -> int:
        """How many milliseconds a statement may take: those that are left, or a second."""
        return max(1_000, int(self.left_seconds * 1000))

    def stop(self) -> None:
        """End now. Safe in a signal handler."""
        self._end = time.monotonic()
