"""Waiting for a condition."""

import time
from collections.abc import Callable

from mailglass_reconcile import flush

PATIENCE = 90
"""Seconds that a test waits at most for a process, a thread or a message: a busy machine multiplies what they take."""


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until *condition* holds, and fail after *seconds* of an idle machine.

    The seconds are the sum of the pauses between checks, of 10 to 50 ms, which take longer on a busy machine.
    """
    sleep, latest, pause, slept = time.sleep, time.monotonic() + 10 * seconds, 0.01, 0.0
    while slept < seconds:
        if condition():
            return
        assert time.monotonic() < latest, f"not within {10 * seconds} s"
        sleep(pause)
        slept += pause
        pause = min(0.05, 1.05 * pause)
    assert condition(), f"not within {seconds} s"


def settle() -> None:
    """Wait until the background thread has run all after-commit actions and closed its connections."""
    wait_until(flush)
