"""The schema's projection, which linking and appending call."""

from collections.abc import Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Transaction, column_arrays

_PROJECT = """
SELECT {schema}.mailglass_reconcile_project_v1(CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]),
                                               CAST(:times AS timestamp[]), CAST(:arrivals AS timestamp[]))
"""


class Report(NamedTuple):
    """What is reported of a delivery; times as Postgres reads them."""

    delivery_id: str
    type: str
    occurred_at: str
    arrived_at: str = "now"


def apply_projection(tx: Transaction, reports: Sequence[Report]) -> int:
    """Project *reports* onto their deliveries, and return the number of rows changed."""
    if not reports:
        return 0
    arrays = column_arrays(("delivery_ids", "types", "times", "arrivals"), reports)
    return int(tx.execute(_PROJECT, arrays).scalar_one())
