"""What is open, and why: a reconciler that silently links nothing is the failure to be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.store import open_orphans, schema
from mailglass_reconcile.store.database import Transaction, connect, transaction
from mailglass_reconcile.store.model import LAST_EVENT, Place, Slice
from mailglass_reconcile.sweep import keys, match

_EXPIRED = """
SELECT count(*) FROM {schema}.mailglass_events AS e
 WHERE e.needs_reconciliation = true AND e.delivery_id IS NULL
   AND e.inserted_at <= now()::timestamp - make_interval(mins => :max_age_minutes)
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_events WHERE idempotency_key = 'reconciled:' || e.id)
"""

_WAITING = """
SELECT tenant_id, provider, count(*) AS orphans FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) GROUP BY tenant_id, provider
"""

_OLDEST = """
SELECT extract(epoch FROM now()::timestamp - min(arrived_at))::bigint FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > CAST(:after AS timestamp) AND arrived_at <= CAST(:until AS timestamp)
"""


@dataclass(frozen=True, slots=True)
class Status:
    """What is open, and why.

    Attributes:
        open: Open orphans, those in grace included.
        oldest_eligible_seconds: Age in seconds of the oldest one that a sweep would look at, or None.
        expired: Orphans of the ledger that were never linked and are older than the maximum age.
        triggers: Whether the triggers that keep the open set are at work.
        groups: Open orphans by `state`, `tenant_id` and `provider`, the largest first; `matched` ones are what
            the next sweep links.
    """

    open: int
    oldest_eligible_seconds: int | None
    expired: int
    triggers: bool
    groups: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `status --json` prints them."""
        return asdict(self)


def status(engine: sa.Engine) -> Status:
    """Count open orphans by state, tenant and provider, in a read-only transaction.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = runtime.get_settings()
    bounds = {"max_age_minutes": settings.max_age_minutes, "grace_seconds": settings.grace_seconds}
    with database_errors(), connect(engine) as connection, transaction(connection, settings, read_only=True) as tx:
        survey = open_orphans.survey(tx, settings, None)
        schema.require_current(survey.version)
        groups: Counter[tuple[str, str, str | None]] = Counter()
        for row in tx.execute(_WAITING, bounds):
            groups["waiting", row.tenant_id, row.provider] += row.orphans
        for piece in _slices(tx, Place(survey.after, LAST_EVENT), Place(survey.until, LAST_EVENT)):
            values = open_orphans.read_values(tx, piece, keys.reads())
            computed = {value.event_id: keys.keys_of(value) for value in values}
            groups.update(match.breakdown(tx, piece, computed))
        oldest = tx.execute(_OLDEST, {"after": survey.after, "until": survey.until}).scalar_one()
        expired = tx.execute(_EXPIRED, bounds).scalar_one()
    named = [
        {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
        for (state, tenant_id, provider), orphans in groups.most_common()
    ]
    return Status(groups.total(), oldest, expired, survey.triggers, tuple(named))


def _slices(tx: Transaction, after: Place, until: Place) -> Iterator[Slice]:
    while after != until:
        piece = Slice(after, until, None)
        piece = replace(piece, until=open_orphans.slice_end(tx, piece))
        yield piece
        after = piece.until
