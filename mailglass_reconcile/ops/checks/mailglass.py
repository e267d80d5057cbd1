"""Beside Mailglass: whether its own reconciler still links, and what that has linked wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.ops.checks.check import Finding, Look, check, ok, warning
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.humanize import counted, share, verb
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction, ids_of_last
from mailglass_reconcile.store.listing import NO_KEYS
from mailglass_reconcile.store.open_orphans import Open
from mailglass_reconcile.sweep.judge import judge

HOUR_SECONDS = 3_600
EVENTS_OF_AN_HOUR = 20_000
TENANTS, EVENTS_OF_A_TENANT = 20, 1_000
DAYS = 7
NEWEST_EVENTS, NEWEST_LINKS = 2_000, 300
TAKE_IT_OUT = "remove the line of Mailglass.Webhook.Reconciler from Oban's crontab"

# By the primary key, if ids are UUIDv7; and of the first tenants, by an index of Mailglass's. Its `inserted_at` may be
# local time, its `occurred_at` is UTC. Ours are both the time of the transaction.
_FOREIGN = """
WITH newest AS (
  (SELECT id, type, occurred_at, inserted_at FROM {schema}.mailglass_events
    WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :events)
   UNION
  SELECT e.id, e.type, e.occurred_at, e.inserted_at
    FROM (SELECT tenant_id FROM {schema}.mailglass_reconcile_tenants_of_events_v1() LIMIT :tenants) AS t
   CROSS JOIN LATERAL (SELECT id, type, occurred_at, inserted_at FROM {schema}.mailglass_events
                        WHERE tenant_id = t.tenant_id ORDER BY inserted_at DESC LIMIT :of_tenant) AS e
)
SELECT count(*) FROM newest
 WHERE type = 'reconciled' AND occurred_at IS DISTINCT FROM inserted_at
   AND occurred_at > now()::timestamp - make_interval(secs => :seconds)
"""

# Ids of events are UUIDv7, so the newest are at the end of the primary key. A person may link as they like.
_NEWEST_LINKS = """
WITH newest AS MATERIALIZED (
  SELECT id, type, delivery_id, idempotency_key, metadata FROM {schema}.mailglass_events
   WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :events
), links AS MATERIALIZED (
  SELECT n.id, n.delivery_id, CAST(substr(n.idempotency_key, 12) AS uuid) AS orphan_id FROM newest AS n
   WHERE n.delivery_id IS NOT NULL AND n.metadata -> 'linked_by' IS NULL AND n.type = 'reconciled'
     AND n.idempotency_key ~ '^reconciled:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' LIMIT :links
)
SELECT l.id::text AS event_id, o.id::text AS orphan_id, o.tenant_id, d.id::text AS delivery_id,
       d.tenant_id IS DISTINCT FROM o.tenant_id AS other_tenant, left(d.recipient, 1000) AS recipient
  FROM links AS l
  JOIN {schema}.mailglass_events AS o ON o.id = l.orphan_id
  JOIN {schema}.mailglass_deliveries AS d ON d.id = l.delivery_id
"""


@check("other_reconciler")
def other_reconciler(look: Look) -> Iterator[Finding]:
    """Mailglass's own reconciler no longer runs."""
    if not schema.made_by_mailglass(look.tx):
        yield ok("there is no Mailglass here")
        return
    bounds = {
        **ids_of_last(HOUR_SECONDS),
        "events": EVENTS_OF_AN_HOUR,
        "tenants": TENANTS,
        "of_tenant": EVENTS_OF_A_TENANT,
        "seconds": HOUR_SECONDS,
    }
    foreign = look.tx.execute(_FOREIGN, bounds).scalar_one()
    if foreign:
        yield warning(
            f"another program made {counted(foreign, 'link')} within an hour: Mailglass's own reconciler still runs. It"
            " links no event twice, but checks neither tenant nor recipient",
            TAKE_IT_OUT,
        )
    else:
        yield ok("no other reconciler has linked anything within an hour")


@check("links")
def links(look: Look) -> Iterator[Finding]:
    """The newest links are to deliveries of the event's tenant and, where it can be read, recipient."""
    if not schema.made_by_mailglass(look.tx):
        yield ok("there is no Mailglass here")
        return
    bounds = {**ids_of_last(DAYS * 86_400), "events": NEWEST_EVENTS, "links": NEWEST_LINKS}
    found = look.tx.execute(_NEWEST_LINKS, bounds).all()
    of_tenant = [row.event_id for row in found if row.other_tenant]
    of_recipient = _of_another_recipient(look.tx, [row for row in found if not row.other_tenant])
    wrong = [*of_tenant, *of_recipient]
    if not wrong:
        yield ok(f"the {counted(len(found), 'newest link')} are to the right tenant and recipient")
        return
    yield warning(
        f"{share(len(wrong), len(found), 'newest link')} {verb(len(wrong))} to another tenant's ({len(of_tenant):,}) or"
        f" recipient's ({len(of_recipient):,}) delivery, made by another reconciler, such as the event {wrong[0]}",
        f"{TAKE_IT_OUT}, and correct these deliveries by hand: the ledger keeps the events",
    )


def _of_another_recipient(tx: Transaction, found: list[sa.Row[Any]]) -> list[str]:
    """Return the links whose orphan names another recipient than their delivery has."""
    judged = judge(tx, [Open(row.orphan_id, row.tenant_id, "", 0, NO_KEYS) for row in found])
    return [
        row.event_id
        for row, one in zip(found, judged, strict=True)
        if one.keys.recipient and one.verdict.delivery_id != row.delivery_id
        if address(one.keys.recipient) != address(row.recipient)
    ]
