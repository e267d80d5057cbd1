"""How a bounded part of a table of any size is looked at: some of its pages, or what was inserted last."""

from __future__ import annotations

import time

from mailglass_reconcile.store.database import Transaction

_PAGES = """
SELECT coalesce(nullif((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(to_regclass(:table))), 0),
                pg_relation_size(to_regclass(:table))) / current_setting('block_size')::bigint
"""


def percent(tx: Transaction, table: str, pages: int) -> float:
    """Return which part of *table*, in percent, has about as many pages of 8 kB; 100 if it has no more than that."""
    there = float(tx.execute(_PAGES, {"table": tx.name_of(table)}).scalar_one())
    return min(100.0, 100.0 * pages / max(there, 1.0))


def first_uuid7(seconds_ago: float) -> str:
    """Return the lowest UUIDv7 of a time, by this machine's clock."""
    return f"{max(0, int((time.time() - seconds_ago) * 1000)):012x}{'0' * 20}"
