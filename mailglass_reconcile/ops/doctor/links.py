"""Whether the newest links are those that our rule would make: another reconciler looks at no tenant or recipient."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from mailglass_reconcile.ops.doctor.finding import Finding, ok, warning
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.humanize import counted, share, verb
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction, ids_of_last
from mailglass_reconcile.store.listing import NO_KEYS
from mailglass_reconcile.store.open_orphans import Open
from mailglass_reconcile.sweep.judge import judge

DAYS = 7
NEWEST_EVENTS, NEWEST_LINKS = 2_000, 300

# Ids of events are UUIDv7, so the newest are at the end of the primary key. A person may link as they like.
_NEWEST_LINKS = """
WITH newest AS MATERIALIZED (
  SELECT id, type, delivery_id, idempotency_key, metadata FROM {schema}.mailglass_events
   WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :events
), links AS MATERIALIZED (
  SELECT id, delivery_id, {linked} AS orphan_id FROM newest
   WHERE delivery_id IS NOT NULL AND metadata -> 'linked_by' IS NULL AND {linked} IS NOT NULL LIMIT :links
)
SELECT l.id::text AS event_id, o.id::text AS orphan_id, o.tenant_id, d.id::text AS delivery_id,
       d.tenant_id IS DISTINCT FROM o.tenant_id AS other_tenant, left(d.recipient, 1000) AS recipient
  FROM links AS l
  JOIN {schema}.mailglass_events AS o ON o.id = l.orphan_id
  JOIN {schema}.mailglass_deliveries AS d ON d.id = l.delivery_id
""".replace("{linked}", schema.linked_by("newest"))


def links(tx: Transaction) -> Iterator[Finding]:
    """Compare the newest links with the rule: whose tenant or, where it can be read, whose recipient is another one."""
    bounds = {
        **ids_of_last(DAYS * 86_400),
        "events": NEWEST_EVENTS,
        "links": NEWEST_LINKS,
    }
    found = tx.execute(_NEWEST_LINKS, bounds).all()
    of_tenant = [row.event_id for row in found if row.other_tenant]
    of_recipient = _of_another_recipient(tx, [row for row in found if not row.other_tenant])
    wrong = [*of_tenant, *of_recipient]
    if not wrong:
        yield ok("links", f"of {counted(len(found), 'newest link')}, none is one that the rule would not make")
        return
    yield warning(
        "links",
        f"{share(len(wrong), len(found), 'newest link')} {verb(len(wrong))} to a delivery that the rule would not"
        f" choose: {len(of_tenant):,} to another tenant's, {len(of_recipient):,} to another recipient's, such as the"
        f" event {wrong[0]}",
        "take the line of Mailglass.Webhook.Reconciler out of Oban's crontab, and correct these deliveries by hand: the"
        " ledger keeps the events",
    )


def _of_another_recipient(tx: Transaction, found: list[sa.Row[tuple[object, ...]]]) -> list[str]:
    """Return the links whose orphan names another recipient than their delivery has."""
    judged = judge(tx, [Open(row.orphan_id, row.tenant_id, "", 0, NO_KEYS) for row in found])
    return [
        row.event_id
        for row, one in zip(found, judged, strict=True)
        if one.keys.recipient and one.verdict.delivery_id != row.delivery_id
        if address(one.keys.recipient) != address(row.recipient)
    ]
