"""The schema's projection, which linking and appending call."""

from collections.abc import Sequence

from mailglass_reconcile.store.database import Transaction, column_arrays
from mailglass_reconcile.store.tables.ledger import ClaimedEvent

_PROJECT = """
SELECT {schema}.mailglass_reconcile_project_v1(CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]),
                                               CAST(:times AS timestamp[]), CAST(:arrivals AS timestamp[]))
"""


def apply_projection(tx: Transaction, events: Sequence[ClaimedEvent]) -> int:
    """Project *events* onto their deliveries, and return the number of rows changed."""
    if not events:
        return 0
    rows = [(event.delivery_id, event.type, event.occurred_at, event.arrived_at) for event in events]
    return int(tx.execute(_PROJECT, column_arrays(("delivery_ids", "types", "times", "arrivals"), rows)).scalar_one())
