"""The end of a sweep by a signal: at once while it reads, after the batch while it links."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mailglass_reconcile.sweep.reconciler import Sweep


@dataclass
class Interruption:
    """The state of `stop_on_signal`: True after the signal."""

    received: bool = False


@contextmanager
def stop_on_signal(number: int, sweep: Sweep) -> Iterator[Interruption]:
    """End *sweep*, which runs in the block, at the first signal of *number*; its committed links stay.

    A second signal has its former effect. For a KeyboardInterrupt, psycopg cancels its statement and leaves a usable
    connection; Celery's own exception would leave the statement running.
    """
    interruption = Interruption()

    def end(number: int, frame: FrameType | None) -> None:
        interruption.received = True
        signal.signal(number, before)
        sweep.stop()
        if not sweep.in_batch:
            raise KeyboardInterrupt

    before = signal.signal(number, end)
    try:
        yield interruption
    except KeyboardInterrupt:
        interruption.received = True
    finally:
        signal.signal(number, before)
