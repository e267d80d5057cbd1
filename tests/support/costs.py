"""The CPU time of a call."""

import gc
import time
from collections.abc import Callable


def cpu(function: Callable[[], object], limit: float = 0) -> float:
    """Return the least CPU seconds of three calls, or those of the first call below *limit*."""
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=1) >= limit:
        if seconds:
            gc.collect()
        started_at = time.thread_time()
        function()
        seconds.append(time.thread_time() - started_at)
    return min(seconds)
