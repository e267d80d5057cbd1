"""The projection by itself, which the statements that link and append call."""

from collections.abc import Sequence

from mailglass_reconcile.store.database import Transaction, column_arrays
from mailglass_reconcile.store.ledger import LinkedEvent

_PROJECT = """
SELECT {schema}.mailglass_reconcile_project_v1(CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]),
                                               CAST(:times AS timestamp[]), CAST(:arrivals AS timestamp[]))
"""


def projected(tx: Transaction, events: Sequence[LinkedEvent]) -> int:
    """Bring deliveries up to date with *events*, and return how many rows changed."""
    if not events:
        return 0
    rows = [(one.delivery_id, one.type, one.occurred_at, one.arrived_at) for one in events]
    return int(tx.execute(_PROJECT, column_arrays(("delivery_ids", "types", "times", "arrivals"), rows)).scalar_one())
