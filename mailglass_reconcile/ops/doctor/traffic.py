"""What the newest events and some deliveries say: another reconciler, ids that no event will ever name.

Each check reads a bounded number of rows, whatever the tables hold.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.doctor import sampling
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.rules.wording import counted, share, verb
from mailglass_reconcile.store.database import Transaction

NEWEST_ROWS = 1_000
TENANTS = 20
DELIVERY_PAGES = 100
RECENT_HOURS = 24

# By the primary key, which is a UUIDv7 in all that Mailglass and we write; and of the first tenants, by the time.
_NEWEST_EVENTS = """
WITH RECURSIVE tenants AS (
  (SELECT tenant_id FROM {schema}.mailglass_events ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.tenant_id > t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
), newest AS (
  (SELECT id, type, occurred_at, inserted_at FROM {schema}.mailglass_events
    WHERE id BETWEEN CAST(:after_id AS uuid) AND CAST(:until_id AS uuid) ORDER BY id DESC LIMIT :size)
   UNION
  (SELECT e.id, e.type, e.occurred_at, e.inserted_at
     FROM (SELECT tenant_id FROM tenants LIMIT :tenants) AS t
    CROSS JOIN LATERAL (SELECT id, type, occurred_at, inserted_at FROM {schema}.mailglass_events
                         WHERE tenant_id = t.tenant_id ORDER BY inserted_at DESC LIMIT :of_tenant) AS e
    WHERE e.inserted_at > now()::timestamp - make_interval(hours => :hours))
)
SELECT count(*) AS events, count(*) FILTER (WHERE type = 'reconciled') AS links,
       count(*) FILTER (WHERE type = 'reconciled' AND occurred_at IS DISTINCT FROM inserted_at) AS foreign_links
  FROM newest
"""

_DELIVERIES = """
SELECT count(*) AS deliveries, count(*) FILTER (WHERE provider IS NULL) AS without_provider,
       count(*) FILTER (WHERE provider_message_id IS NULL) AS without_id,
       count(*) FILTER (WHERE provider_message_id LIKE 'mailglass-synthetic-%') AS made_up
  FROM {schema}.mailglass_deliveries TABLESAMPLE SYSTEM (CAST(:percent AS real))
"""


def other_reconciler(tx: Transaction) -> Iterator[Finding]:
    """Say if Mailglass's own reconciler still runs: its events happen at another moment than they are inserted."""
    bounds = {
        "after_id": sampling.first_uuid7(RECENT_HOURS * 3_600),
        "until_id": sampling.first_uuid7(-60),
        "size": NEWEST_ROWS,
        "hours": RECENT_HOURS,
        "tenants": TENANTS,
        "of_tenant": NEWEST_ROWS // TENANTS,
    }
    row = tx.execute(_NEWEST_EVENTS, bounds).one()
    if row.foreign_links:
        yield warning(
            "other_reconciler",
            f"{row.foreign_links:,} of the {counted(row.links, 'newest `reconciled` event')} of the last"
            f" {RECENT_HOURS} hours {verb(row.foreign_links)} another program's: Mailglass's own reconciler still runs."
            " Both at once do no harm",
            "take the line of Mailglass.Webhook.Reconciler out of Oban's crontab",
        )
    else:
        yield ok("other_reconciler", f"no other reconciler in {counted(row.events, 'newest event')}")


def deliveries(tx: Transaction) -> Iterator[Finding]:
    """Say how many deliveries have no provider, and whether their ids can be found by an event."""
    row = tx.execute(_DELIVERIES, {"percent": sampling.percent(tx, "mailglass_deliveries", DELIVERY_PAGES)}).one()
    if not row.deliveries:
        yield ok("deliveries", "there is no delivery yet")
        return
    seen = counted(row.deliveries, "delivery", "deliveries")
    percent = round(100 * row.without_provider / row.deliveries)
    yield ok(
        "deliveries",
        f"{percent} % of {seen} looked at have no provider, and match events of every provider"
        + ("; Mailglass 0.1.1 stores none" if percent == 100 else ""),
    )
    if row.made_up:
        yield warning(
            "delivery_ids",
            f"{share(row.made_up, row.deliveries, 'delivery', 'deliveries')} looked at"
            f" {verb(row.made_up, 'has', 'have')} an id that Mailglass made up"
            " (mailglass-synthetic-…), which no event will ever name",
            "none with Mailjet and SparkPost under Mailglass 0.1.1; send through another provider, or record with"
            " record_send()",
        )
    if row.without_id == row.deliveries:
        yield error(
            "delivery_ids",
            f"none of {seen} looked at has a provider_message_id, so no event can find one",
            "store the id that the provider's API answers, as record_send() does",
        )
