"""What a new installation has done so far: before its first run, nothing is wrong with it yet."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store.database import Transaction

_BEGINNING = """
SELECT EXISTS (SELECT FROM {schema}.mailglass_reconcile_runs) AS has_run,
       EXISTS (SELECT FROM {schema}.mailglass_deliveries) AS has_delivery,
       EXISTS (SELECT FROM {schema}.mailglass_events WHERE delivery_id IS NULL) AS has_orphan,
       EXISTS (SELECT FROM {schema}.mailglass_open_orphans
                WHERE arrived_at < now()::timestamp - make_interval(secs => :late_seconds)) AS is_late
"""


class Beginning(NamedTuple):
    """What there is before the first run: a delivery, an event that needs one."""

    has_delivery: bool
    has_orphan: bool


def beginning(tx: Transaction) -> Beginning | None:
    """Return what a new installation has; None if something has run, or if an orphan has waited too long for that."""
    row = tx.execute(_BEGINNING, {"late_seconds": LATE_SECONDS}).one()
    return None if row.has_run or row.is_late else Beginning(row.has_delivery, row.has_orphan)
