"""Ctrl-C, SIGTERM and SIGHUP in the demo: noticed at once, obeyed between two steps.

An exception out of a signal handler can strike anywhere, also in the clean-up that stops a server. A note cannot.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mailglass_reconcile.testing.processes import ENDING_SIGNALS


class Interrupted(Exception):  # noqa: N818 - an order, not an error
    """Somebody asked the demo to stop."""


class Interruption:
    """Whether somebody has asked the demo to stop; `signal` is the last signal that did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Continue, unless somebody has asked to stop.

        Raises:
            Interrupted: Somebody has.
        """
        if self.signal is not None:
            raise Interrupted


@contextmanager
def noticed() -> Iterator[Interruption]:
    """Only take note of the ending signals while the block runs."""
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal = number

    before = {number: signal.signal(number, note) for number in ENDING_SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
