"""Python's garbage collector while a sweep runs: it would walk through the sweep's objects for a fifth of the time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 5_000
"""New objects between two collections; Python's default is 700, or 2,000."""

_lock = threading.Lock()
_sweeps = 0
_thresholds = gc.get_threshold()


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Let the collector run less often in this process while the block runs, in any number of threads at once.

    After the last block the process has its own thresholds again. A collector that is off, or runs less often, is left
    alone.
    """
    global _sweeps, _thresholds  # noqa: PLW0603 - the collector is the process's
    with _lock:
        _sweeps += 1
        if _sweeps == 1:
            _thresholds = gc.get_threshold()
            if 0 < _thresholds[0] < NEW_OBJECTS:
                gc.set_threshold(NEW_OBJECTS, *_thresholds[1:])
    try:
        yield
    finally:
        with _lock:
            _sweeps -= 1
            if not _sweeps and gc.get_threshold() == (NEW_OBJECTS, *_thresholds[1:]):
                gc.set_threshold(*_thresholds)
