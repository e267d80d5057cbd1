"""The check by samples that the table of open orphans equals the ledger.

A sample of pages costs the same however large a table is, and each time it is another one; a smaller table is looked at
whole. The repair of the open orphans is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok, warning
from mailglass_reconcile.rules.humanize import n_of_m, pluralize, verb
from mailglass_reconcile.store.database import OpenConnection, Transaction
from mailglass_reconcile.store.tables import repair
from mailglass_reconcile.store.tables.open_orphans import MAX_TENANT_LENGTH

PAGES = {"mailglass_events": 400, "mailglass_open_orphans": 100, "mailglass_open_orphan_ids": 100}
"""Pages of 8 kB: about 10,000 rows of each table."""
DAY_MINUTES = 1_440
REPAIR = "run `mailglass-reconcile doctor --repair`; the daily prune repairs it too"

# An orphan that is within a day of the maximum age may have expired by another reading of its time.
_MISSING = """
SELECT count(*) AS looked_at, count(*) FILTER (WHERE too_long) AS too_long,
       count(*) FILTER (WHERE EXISTS (SELECT FROM {schema}.mailglass_reconcile_missing_v1(s.id, s.tenant_id)
                                      OFFSET 0)) AS wrong
  FROM (SELECT id, tenant_id, length(tenant_id) > :max_tenant_length AS too_long
          FROM {schema}.mailglass_events TABLESAMPLE SYSTEM (CAST(:percent AS real))
         WHERE needs_reconciliation = true AND delivery_id IS NULL
           AND inserted_at > now()::timestamp - make_interval(mins => :minutes)
           AND inserted_at < now()::timestamp + interval '1 day'
           AND (substr(id::text, 15, 1) <> '7'
                OR to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)::timestamp
                   BETWEEN now()::timestamp - make_interval(mins => :minutes)
                       AND now()::timestamp + interval '1 minute')) AS s
"""

_SETTLED = """
SELECT count(*) AS looked_at,
       count(*) FILTER (WHERE EXISTS (SELECT FROM {schema}.mailglass_reconcile_settled_v1(s.event_id, s.tenant_id)
                                      OFFSET 0)) AS wrong
  FROM (SELECT event_id, tenant_id
          FROM {schema}.mailglass_open_orphans TABLESAMPLE SYSTEM (CAST(:percent AS real))) AS s
"""

_STRAY_IDS = """
SELECT count(*) AS looked_at,
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans
                                           WHERE event_id = s.event_id OFFSET 0)) AS wrong
  FROM (SELECT event_id
          FROM {schema}.mailglass_open_orphan_ids TABLESAMPLE SYSTEM (CAST(:percent AS real))) AS s
"""

_PAGES = """
SELECT coalesce(nullif((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(to_regclass(:table))), 0),
                pg_relation_size(to_regclass(:table))) / current_setting('block_size')::bigint
"""


@check("open_set")
def open_set(context: CheckContext) -> Iterator[Finding]:
    """The table of open orphans has what the ledger says, and nothing else."""
    max_age = context.tx.settings.max_age_minutes
    minutes = {"minutes": max_age - min(DAY_MINUTES, max_age // 2), "max_tenant_length": MAX_TENANT_LENGTH}
    ledger = _sample(context.tx, _MISSING, "mailglass_events", **minutes)
    orphans = _sample(context.tx, _SETTLED, "mailglass_open_orphans")
    ids = _sample(context.tx, _STRAY_IDS, "mailglass_open_orphan_ids")
    if ledger.wrong:
        yield error(
            f"{n_of_m(ledger.wrong, ledger.looked_at, 'orphan')} checked {verb(ledger.wrong)} missing in the"
            " table of open orphans, so no sweep links them",
            REPAIR,
        )
    if orphans.wrong or ids.wrong:
        yield warning(
            f"the table of open orphans has extra rows: {n_of_m(orphans.wrong, orphans.looked_at, 'orphan')} that"
            f" {verb(orphans.wrong)} reconciled or not in the ledger, {n_of_m(ids.wrong, ids.looked_at, 'id')}"
            " without an orphan",
            REPAIR,
        )
    if ledger.too_long:
        yield warning(
            f"{n_of_m(ledger.too_long, ledger.looked_at, 'orphan')} checked"
            f" {verb(ledger.too_long, 'has', 'have')} a tenant of more than {MAX_TENANT_LENGTH:,} characters, and no"
            " sweep links such events",
            "write events and deliveries with a shorter tenant id",
        )
    if not (ledger.wrong or orphans.wrong or ids.wrong):
        checked = pluralize(ledger.looked_at, "orphan")
        yield ok(f"the table of open orphans equals the ledger, as far as checked ({checked})")


def _sample(tx: Transaction, statement: str, table: str, **parameters: int) -> sa.Row[Any]:
    """Count the rows of a sample that are `wrong`, and all that were `looked_at`."""
    return tx.execute(statement, {"percent": _percent(tx, table, PAGES[table]), **parameters}).one()


def _percent(tx: Transaction, table: str, pages: int) -> float:
    """Return the share of *table*, in percent, that has about *pages* pages of 8 kB; at most 100."""
    table_pages = float(tx.execute(_PAGES, {"table": tx.name_of(table)}).scalar_one())
    return min(100.0, 100.0 * pages / max(table_pages, 1.0))


def repair_open_orphans(connected: OpenConnection) -> str:
    """Make the open orphans equal the ledger, as the daily prune does, and return a summary."""
    with database_errors():
        removed = sum(expired.orphans for expired in repair.remove_expired(connected))
        added = repair.add_missing(connected)
        removed += repair.remove_closed(connected)
        repair.remove_stray_ids(connected)
    return f"repaired: {pluralize(added, 'open orphan')} added, {removed:,} removed"
