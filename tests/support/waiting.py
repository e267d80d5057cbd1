"""Waiting for a condition."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until *condition* holds, and fail where it does not within *seconds* of a machine with nothing else to do.

    They are counted in looks, of which there are a hundred in a second: on a busy machine each takes longer.
    """
    pause, latest = time.sleep, time.monotonic() + 10 * seconds
    for _ in range(round(seconds * 100)):
        if condition():
            return
        assert time.monotonic() < latest, f"not within {10 * seconds} s"
        pause(0.01)
    assert condition(), f"not within {seconds} s"
