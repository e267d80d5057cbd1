"""The fan-out: the window of a full sweep, cut into ranges of arrival for as many workers as there are."""

from __future__ import annotations

import math
from itertools import pairwise

from mailglass_reconcile.store import windows
from mailglass_reconcile.store.database import Database, with_retries
from mailglass_reconcile.store.windows import Range
from mailglass_reconcile.sweep.window import open_window

MOST_RANGES = 100
"""A backlog that would need more gets larger ones."""


def cut(database: Database, tenant_id: str | None, size: int) -> tuple[int, list[Range]]:
    """Return how many orphans are eligible and, if more than *size*, ranges of arrival with about *size* in each.

    The ranges are disjoint and cover the window of a full sweep. All that arrived at one time is in one range.
    """
    if size < 1:
        raise ValueError("fan_out must be at least 1")

    def read() -> tuple[int, list[Range]]:
        with connected.reading() as tx:
            window = open_window(tx, tenant_id)
            if window.eligible <= size:
                return window.eligible, []
            ranges = min(MOST_RANGES, math.ceil(window.eligible / size))
            edges = windows.cuts(tx, window.whole, math.ceil(window.eligible / ranges), window.eligible)
        (whole,) = window.whole.ranges
        return window.eligible, [Range(*each) for each in pairwise([whole.after, *dict.fromkeys(edges), whole.until])]

    with database.connect() as connected:
        return with_retries(read)
