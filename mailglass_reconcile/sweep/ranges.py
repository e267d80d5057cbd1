"""Cutting what is eligible into ranges of arrival, so that several workers can sweep it at once."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import sqlalchemy as sa

from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import eligible, schema
from mailglass_reconcile.store.database import transaction, with_retries
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.model import Range
from mailglass_reconcile.sweep import windows

MOST_RANGES = 100
"""A backlog that would need more gets larger ones."""


def cut(engine: sa.Engine, settings: Settings, tenant_id: str | None, size: int) -> tuple[int, list[Range]]:
    """Return how many orphans are eligible and, if more than *size*, ranges of arrival with about *size* in each.

    The ranges are disjoint and cover the window of a full sweep. All that arrived at one time is in one range.

    Args:
        engine: The database.
        settings: Grace and maximum age.
        tenant_id: Of this tenant only; None is all tenants.
        size: Orphans that one sweep will look at.

    Raises:
        MailglassReconcileError: The database refused, cannot be reached, or lacks what this version needs.
        ValueError: *size* is below 1.
    """
    if size < 1:
        raise ValueError("fan_out must be at least 1")
    with database_errors(), connect(engine) as connection:
        return with_retries(partial(_cut, connection, settings, tenant_id, size))


def _cut(connection: sa.Connection, settings: Settings, tenant_id: str | None, size: int) -> tuple[int, list[Range]]:
    with transaction(connection, settings, read_only=True, snapshot=True, probes_only=True) as tx:
        seen = eligible.survey(tx, settings)
        schema.require_current(seen.version)
        whole = seen.window(tenant_id)
        orphans = eligible.count(tx, whole) if windows.can_be(tenant_id) else 0
        if orphans <= size:
            return orphans, []
        ranges = min(MOST_RANGES, math.ceil(orphans / size))
        cuts = eligible.cuts(tx, whole, math.ceil(orphans / ranges), orphans)
    return orphans, [Range(*edges) for edges in pairwise([seen.after, *dict.fromkeys(cuts), seen.until])]
