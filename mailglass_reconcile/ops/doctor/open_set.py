"""Whether the table of open orphans equals what the ledger says, by a sample of both; the repair is complete.

A sample of pages costs the same whatever the tables hold, and each time it is another one. A table that is smaller than
the sample is looked at whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.ops.doctor import sampling
from mailglass_reconcile.ops.doctor.database import Asked
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.rules.wording import counted, share, verb
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import repair
from mailglass_reconcile.store.database import Transaction

LEDGER_PAGES, OPEN_PAGES = 400, 100
"""Pages of 8 kB: about 10,000 rows of each table."""

REPAIR = "run `mailglass-reconcile doctor --repair`; the daily prune repairs it too"
BATCH_ROWS = 5_000
DAY_MINUTES = 1_440

# An orphan that is within a day of the maximum age may have expired by another reading of its time.
_MISSING = """
SELECT count(*) AS looked_at,
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans WHERE event_id = s.id)
                          AND NOT EXISTS (SELECT FROM {schema}.mailglass_events
                                           WHERE idempotency_key = 'reconciled:' || s.id
                                             AND type = 'reconciled' AND tenant_id = s.tenant_id)) AS wrong
  FROM (SELECT id, tenant_id FROM {schema}.mailglass_events TABLESAMPLE SYSTEM (CAST(:percent AS real))
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
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_events WHERE id = s.event_id)
                           OR EXISTS (SELECT FROM {schema}.mailglass_events
                                       WHERE idempotency_key = 'reconciled:' || s.event_id
                                         AND type = 'reconciled' AND tenant_id = s.tenant_id)) AS wrong
  FROM (SELECT event_id, tenant_id
          FROM {schema}.mailglass_open_orphans TABLESAMPLE SYSTEM (CAST(:percent AS real))) AS s
"""

_STRAY_IDS = """
SELECT count(*) AS looked_at,
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans WHERE event_id = s.event_id))
         AS wrong
  FROM (SELECT event_id
          FROM {schema}.mailglass_open_orphan_ids TABLESAMPLE SYSTEM (CAST(:percent AS real))) AS s
"""


def open_set(tx: Transaction, settings: Settings, *, repaired: str = "") -> Iterator[Finding]:
    """Compare a sample of the ledger with the open orphans, and the other way round."""
    missing, of_ledger = _sample(tx, _MISSING, "mailglass_events", LEDGER_PAGES, settings)
    settled, of_open = _sample(tx, _SETTLED, "mailglass_open_orphans", OPEN_PAGES, settings)
    stray, of_ids = _sample(tx, _STRAY_IDS, "mailglass_open_orphan_ids", OPEN_PAGES, settings)
    if missing:
        yield error(
            "open_set",
            f"{repaired}{share(missing, of_ledger, 'orphan')} looked at {verb(missing)} missing in the table of open"
            " orphans, so no sweep links them",
            REPAIR,
        )
    if settled or stray:
        yield warning(
            "open_set",
            f"{repaired}{share(settled, of_open, 'open orphan')} looked at {verb(settled)} reconciled already, or not"
            f" in the ledger; {share(stray, of_ids, 'stored id')} {verb(stray, 'belongs', 'belong')} to no open orphan",
            REPAIR,
        )
    if not missing and not settled and not stray:
        yield ok(
            "open_set",
            f"{repaired}the table of open orphans equals the ledger, as far as looked at"
            f" ({counted(of_ledger, 'orphan')} of the ledger, {counted(of_open, 'open one')})",
        )


def _sample(tx: Transaction, statement: str, table: str, pages: int, settings: Settings) -> tuple[int, int]:
    """Return how many rows of a sample are wrong, and how many were looked at."""
    max_age = settings.max_age_minutes
    minutes = max_age - min(DAY_MINUTES, max_age // 2)
    row = tx.execute(statement, {"percent": sampling.percent(tx, table, pages), "minutes": minutes}).one()
    return row.wrong, row.looked_at


def repair_it(asked: Asked) -> str:
    """Make the open orphans equal the ledger, as the daily prune does, and say what was done; reads all of the ledger.

    Raises:
        MailglassReconcileError: The database refused; earlier batches stay done.
    """
    with database_errors():
        removed = repair.remove_expired(asked.connection, asked.settings, BATCH_ROWS).orphans
        removed += repair.remove_settled(asked.connection, asked.settings, BATCH_ROWS)
        repair.remove_stray_ids(asked.connection, asked.settings, BATCH_ROWS)
        added = repair.add_missing(asked.connection, asked.settings, BATCH_ROWS)
    return f"repaired: {counted(added, 'open orphan')} added, {removed:,} removed; "
