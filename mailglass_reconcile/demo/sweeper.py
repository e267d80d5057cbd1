"""What sweeps in the demo. Whoever plays the part is polled for the sweeps that have ended since the last time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

from mailglass_reconcile import runtime
from mailglass_reconcile.result import SweepResult

INTERVAL_SECONDS = 1.0


class Sweeper(Protocol):
    """Sweeps by itself, every second or so."""

    def poll(self) -> Iterator[SweepResult]:
        """Yield the sweeps that have ended since the last call."""


class OwnSweeps:
    """Sweeps in this process, when it is polled and the interval is over."""

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._next = time.monotonic() + interval_seconds

    def poll(self) -> Iterator[SweepResult]:
        """Sweep if it is time, and yield what the sweep came to."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            yield runtime.reconcile()
