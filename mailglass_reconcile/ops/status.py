"""What is open, and why: a reconciler that silently links nothing is the failure to be seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.store import outbox
from mailglass_reconcile.store.database import Transaction, connect, transaction
from mailglass_reconcile.sweep import examination, windows
from mailglass_reconcile.sweep.windows import Window

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

_KEYED = """
SELECT tenant_id, provider, ids = 0 AS unmatchable, count(*) AS orphans FROM {schema}.mailglass_open_orphans
 WHERE arrived_at > CAST(:after_time AS timestamp) AND arrived_at <= CAST(:until_time AS timestamp)
   AND rule IS NOT NULL AND rule <> ALL (CAST(:stale AS text[]))
   AND NOT (rule = :any AND coalesce(provider = ANY (CAST(:known AS text[])), false))
 GROUP BY tenant_id, provider, ids = 0
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
        hooks_waiting: Events of the outbox that handlers have not done with.
        hooks_dead: Events of the outbox whose handlers have failed for the last time.
    """

    open: int
    oldest_eligible_seconds: int | None
    expired: int
    triggers: bool
    groups: tuple[dict[str, Any], ...]
    hooks_waiting: int
    hooks_dead: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `status --json` prints them."""
        return asdict(self)


def status(engine: sa.Engine) -> Status:
    """Count open orphans by state, tenant and provider, in a read-only transaction.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    runtime.load_imports()
    settings = runtime.get_settings()
    bounds = {"max_age_minutes": settings.max_age_minutes, "grace_seconds": settings.grace_seconds}
    with (
        database_errors(),
        connect(engine) as connection,
        transaction(connection, settings, read_only=True, snapshot=True) as tx,
    ):
        window = windows.survey(tx, settings, *examination.marks(), None)
        groups: Counter[tuple[str, str, str | None]] = Counter()
        for row in tx.execute(_WAITING, bounds):
            groups["waiting", row.tenant_id, row.provider] += row.orphans
        for row in tx.execute(_KEYED, {**window.whole.parameters(), **window.marks.parameters()}):
            groups["unmatchable" if row.unmatchable else "unmatched", row.tenant_id, row.provider] += row.orphans
        _examine(tx, window, groups)
        oldest = tx.execute(_OLDEST, {"after": window.survey.after, "until": window.survey.until}).scalar_one()
        expired = tx.execute(_EXPIRED, bounds).scalar_one()
        hooks = outbox.count(tx)
    named = [
        {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
        for (state, tenant_id, provider), orphans in groups.most_common()
        if orphans
    ]
    return Status(groups.total(), oldest, expired, window.survey.triggers, tuple(named), *hooks)


def _examine(tx: Transaction, window: Window, groups: Counter[tuple[str, str, str | None]]) -> None:
    """Add what the sweep's own rule says of orphans without keys, and of those whose ids name a delivery."""
    parts = window.parts
    while parts:
        keyed = parts[0].keyed
        orphans, parts = windows.next_orphans(tx, window, parts)
        raw = window.survey.raw_webhooks
        for one in examination.examine(tx, orphans, raw_webhooks=raw, complain=lambda sentence: None):
            if keyed:
                groups["unmatched", one.orphan.tenant_id, one.keys.provider] -= 1
            groups[one.verdict.state, one.orphan.tenant_id, one.keys.provider] += 1
