"""What a bounded part of the tables says: whether the open orphans equal the ledger, and who else writes there.

A sample of pages costs the same however large a table is, and each time it is another one; a smaller table is looked at
whole. The repair of the open orphans is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.rules.humanize import counted, share, verb
from mailglass_reconcile.store import repair, schema
from mailglass_reconcile.store.database import Connected, Transaction, ids_of_last
from mailglass_reconcile.store.open_orphans import MAX_TENANT_LENGTH

LEDGER_PAGES, OPEN_PAGES = 400, 100
"""Pages of 8 kB: about 10,000 rows of each table."""

REPAIR = "run `mailglass-reconcile doctor --repair`; the daily prune repairs it too"
BATCH_ROWS = 5_000
DAY_MINUTES = 1_440
NEWEST_ROWS = 1_000
TENANTS = 20
DELIVERY_PAGES = 100
RECENT_HOURS = 24

# OFFSET 0, so that each row is probed for: with stale statistics, hashing a whole table looks cheap. For the same
# reason IS NOT DISTINCT FROM, which no index serves. An orphan that is within a day of the maximum age may have expired
# by another reading of its time.
_MISSING = """
SELECT count(*) AS looked_at, count(*) FILTER (WHERE too_long) AS too_long,
       count(*) FILTER (WHERE NOT too_long
                          AND NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans WHERE event_id = s.id OFFSET 0)
                          AND NOT EXISTS (SELECT FROM {schema}.mailglass_events AS r WHERE {links} OFFSET 0)) AS wrong
  FROM (SELECT id, tenant_id, length(tenant_id) > :max_tenant_length AS too_long
          FROM {schema}.mailglass_events TABLESAMPLE SYSTEM (CAST(:percent AS real))
         WHERE needs_reconciliation = true AND delivery_id IS NULL
           AND inserted_at > now()::timestamp - make_interval(mins => :minutes)
           AND inserted_at < now()::timestamp + interval '1 day'
           AND (substr(id::text, 15, 1) <> '7'
                OR to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)::timestamp
                   BETWEEN now()::timestamp - make_interval(mins => :minutes)
                       AND now()::timestamp + interval '1 minute')) AS s
""".replace("{links}", schema.links("s.id", "s.tenant_id"))

_SETTLED = """
SELECT count(*) AS looked_at,
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = s.event_id OFFSET 0)
                           OR EXISTS (SELECT FROM {schema}.mailglass_events AS r WHERE {links} OFFSET 0)) AS wrong
  FROM (SELECT event_id, tenant_id
          FROM {schema}.mailglass_open_orphans TABLESAMPLE SYSTEM (CAST(:percent AS real))) AS s
""".replace("{links}", schema.links("s.event_id", "s.tenant_id"))

_STRAY_IDS = """
SELECT count(*) AS looked_at,
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans
                                           WHERE event_id = s.event_id OFFSET 0)) AS wrong
  FROM (SELECT event_id
          FROM {schema}.mailglass_open_orphan_ids TABLESAMPLE SYSTEM (CAST(:percent AS real))) AS s
"""


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


_PAGES = """
SELECT coalesce(nullif((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(to_regclass(:table))), 0),
                pg_relation_size(to_regclass(:table))) / current_setting('block_size')::bigint
"""


def open_set(tx: Transaction) -> Iterator[Finding]:
    """Compare a sample of the ledger with the open orphans, and the other way round."""
    ledger = _sample(tx, _MISSING, "mailglass_events", LEDGER_PAGES, max_tenant_length=MAX_TENANT_LENGTH)
    missing, of_ledger = ledger.wrong, ledger.looked_at
    of_open, settled = map(int, _sample(tx, _SETTLED, "mailglass_open_orphans", OPEN_PAGES))
    of_ids, stray = map(int, _sample(tx, _STRAY_IDS, "mailglass_open_orphan_ids", OPEN_PAGES))
    if missing:
        yield error(
            "open_set",
            f"{share(missing, of_ledger, 'orphan')} looked at {verb(missing)} missing in the table of open"
            " orphans, so no sweep links them",
            REPAIR,
        )
    if settled or stray:
        yield warning(
            "open_set",
            f"{share(settled, of_open, 'open orphan')} looked at {verb(settled)} reconciled already, or not"
            f" in the ledger; {share(stray, of_ids, 'stored id')} {verb(stray, 'belongs', 'belong')} to no open orphan",
            REPAIR,
        )
    if ledger.too_long:
        yield warning(
            "open_set",
            f"{share(ledger.too_long, of_ledger, 'orphan')} looked at {verb(ledger.too_long, 'has', 'have')} a tenant"
            f" of more than {MAX_TENANT_LENGTH:,} characters, and no sweep links such events",
            "write events and deliveries with a shorter tenant id",
        )
    if not missing and not settled and not stray:
        yield ok(
            "open_set",
            f"the table of open orphans equals the ledger, as far as looked at"
            f" ({counted(of_ledger, 'orphan')} of the ledger, {counted(of_open, 'open one')})",
        )


def _sample(tx: Transaction, statement: str, table: str, pages: int, **more: int) -> sa.Row[Any]:
    """Return how many rows of a sample are `wrong`, and how many were `looked_at`."""
    max_age = runtime.get_settings().max_age_minutes
    minutes = max_age - min(DAY_MINUTES, max_age // 2)
    return tx.execute(statement, {"percent": _percent(tx, table, pages), "minutes": minutes, **more}).one()


def other_reconciler(tx: Transaction) -> Iterator[Finding]:
    """Say if Mailglass's own reconciler still runs: its events happen at another moment than they are inserted."""
    bounds = {
        **ids_of_last(RECENT_HOURS * 3_600),
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
            " It links no event twice, but looks at no tenant and no recipient",
            "take the line of Mailglass.Webhook.Reconciler out of Oban's crontab",
        )
    else:
        yield ok("other_reconciler", f"no other reconciler in {counted(row.events, 'newest event')}")


def deliveries(tx: Transaction) -> Iterator[Finding]:
    """Say how many deliveries have no provider, and whether their ids can be found by an event."""
    row = tx.execute(_DELIVERIES, {"percent": _percent(tx, "mailglass_deliveries", DELIVERY_PAGES)}).one()
    if not row.deliveries:
        yield ok("deliveries", "there is no delivery yet")
        return
    seen = counted(row.deliveries, "delivery", "deliveries")
    percent = round(100 * row.without_provider / row.deliveries)
    yield ok(
        "deliveries",
        f"{percent} % of {seen} looked at have no provider, and match events of every provider"
        + ("; Mailglass stores none" if percent == 100 else ""),
    )
    if row.made_up:
        yield warning(
            "delivery_ids",
            f"{share(row.made_up, row.deliveries, 'delivery', 'deliveries')} looked at"
            f" {verb(row.made_up, 'has', 'have')} an id that Mailglass made up"
            " (mailglass-synthetic-…), which no event will ever name",
            "none with Mailjet and SparkPost under Mailglass; send through another provider, or record with"
            " record_send()",
        )
    if row.without_id == row.deliveries:
        yield error(
            "delivery_ids",
            f"none of {seen} looked at has a provider_message_id, so no event can find one",
            "store the id that the provider's API answers, as record_send() does",
        )


def _percent(tx: Transaction, table: str, pages: int) -> float:
    """Return which part of *table*, in percent, has about as many pages of 8 kB; 100 if it has no more than that."""
    there = float(tx.execute(_PAGES, {"table": tx.name_of(table)}).scalar_one())
    return min(100.0, 100.0 * pages / max(there, 1.0))


def repair_it(connected: Connected) -> str:
    """Make the open orphans equal the ledger, as the daily prune does, and return what was done.

    Raises:
        MailglassReconcileError: The database refused; earlier batches stay done.
    """
    with database_errors():
        removed = repair.remove_expired(connected, BATCH_ROWS).orphans
        removed += repair.remove_settled(connected, BATCH_ROWS)
        repair.remove_stray_ids(connected, BATCH_ROWS)
        added = repair.add_missing(connected, BATCH_ROWS)
    return f"repaired: {counted(added, 'open orphan')} added, {removed:,} removed"
