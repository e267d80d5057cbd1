"""Waiting for a condition."""

import time
from collections.abc import Callable

from mailglass_reconcile import flush


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until *condition* holds, and fail where it does not within *seconds* of a machine with nothing else to do.

    They are counted in the pauses between looks, from a hundredth of a second to a twentieth: on a busy machine each
    takes longer.
    """
    sleep, latest, pause, waited = time.sleep, time.monotonic() + 10 * seconds, 0.01, 0.0
    while waited < seconds:
        if condition():
            return
        assert time.monotonic() < latest, f"not within {10 * seconds} s"
        sleep(pause)
        waited += pause
        pause = min(0.05, 1.05 * pause)
    assert condition(), f"not within {seconds} s"


def settle() -> None:
    """Wait until the background thread has done what commits have left to do, and has closed its connections."""
    wait_until(flush)
