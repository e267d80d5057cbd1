"""The fan-out: the window of a full sweep, cut into ranges of arrival for as many workers as there are."""

from __future__ import annotations

import math
from itertools import pairwise

from mailglass_reconcile.errors import InvalidArgumentError
from mailglass_reconcile.store.database import Database, with_retries
from mailglass_reconcile.store.queries import selection
from mailglass_reconcile.store.queries.selection import Range

MOST_RANGES = 100
"""A backlog that would need more gets larger ones."""


def cut_window(database: Database, tenant_id: str | None, size: int) -> tuple[int, list[Range]]:
    """Count the eligible orphans and, if there are more than *size*, cut them into ranges of arrival of about *size*.

    The ranges are disjoint and cover the window of a full sweep. All that arrived at one time is in one range.
    """
    if size < 1:
        raise InvalidArgumentError("fan_out must be at least 1")

    def read() -> tuple[int, list[Range]]:
        with connected.reading() as tx:
            opened = selection.open_window(tx)
            eligible = selection.count_open(tx, opened, tenant_id)
            if eligible <= size:
                return eligible, []
            ranges = min(MOST_RANGES, math.ceil(eligible / size))
            edges = selection.range_boundaries(tx, opened, tenant_id, math.ceil(eligible / ranges), eligible)
        return eligible, [Range(*edge) for edge in pairwise([opened.after, *dict.fromkeys(edges), opened.until])]

    with database.connect() as connected:
        return with_retries(read)
