"""Rows of the past: what a block inserts is some days old."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from factories import delivery_row, insert, orphan_row
from mailglass_reconcile import runtime
from mailglass_reconcile.ops.pruner import PruneResult, prune_with
from mailglass_reconcile.store.database import Database

_AGE = """
CREATE FUNCTION witness.age() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  NEW.inserted_at := NEW.inserted_at - interval '{days} days';
  RETURN NEW;
END $$;
CREATE TRIGGER age BEFORE INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION witness.age();
CREATE TRIGGER age BEFORE INSERT ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION witness.age();
"""


@contextmanager
def days_ago(db: Any, days: int) -> Iterator[None]:
    """Make events and deliveries that the block inserts *days* old, and so their ids; sweeps in it look back a year."""
    db.run(_AGE.replace("{days}", str(days)))
    nanoseconds = time.time_ns
    with patch("time.time_ns", lambda: nanoseconds() - days * 86_400 * 10**9):
        yield
    db.run("DROP FUNCTION witness.age() CASCADE")


def prune(db: Any, events: int | None = 30, deliveries: int | None = None, **more: object) -> PruneResult:
    """Prune with a retention in days, and return the result."""
    update = {"retention_events_days": events, "retention_deliveries_days": deliveries, **more}
    return prune_with(Database(db.engine, db.settings.model_copy(update=update), runtime.get_limits()))


def batch(name: str, days: int) -> str:
    """Return the call of retention's first batch, of `events` or `deliveries`."""
    nil = "00000000-0000-0000-0000-000000000000"
    cursor = {"events": f"'{nil}'", "deliveries": f"'', '', '-infinity', '{nil}'"}[name]
    return f"public.mailglass_reconcile_prune_{name}_v1({days}, 100, {cursor})"


EVENTS_BY_DELIVERY = """
SELECT e.delivery_id::text AS id, count(*) FILTER (WHERE e.inserted_at < now()::timestamp - interval '30 days') AS old,
       count(*) FILTER (WHERE e.inserted_at > now()::timestamp - interval '30 days') AS young
  FROM mailglass_events AS e WHERE e.delivery_id IS NOT NULL GROUP BY 1
"""


def fill(db, deliveries: int, events: int = 3) -> dict[str, str]:
    """Insert deliveries of forty days ago with some events each; return their message ids by delivery id."""
    rows = [delivery_row(f"m-{number}") for number in range(deliveries)]
    with days_ago(db, 40):
        columns = {"needs_reconciliation": False, "type": "opened", "occurred_at": "2026-01-03", "age_seconds": 0}
        rows_of_events = [orphan_row({}, delivery_id=row["id"], **columns) for row in rows for _ in range(events)]
        random.Random(1).shuffle(rows_of_events)
        insert(db, rows, rows_of_events)
    return {row["id"]: row["message_id"] for row in rows}


def check(db, filled: dict[str, str], events: int = 3) -> None:
    """Check that each delivery has all of its old events or none, and that events attached meanwhile have a
    delivery.
    """
    delivery_ids = {row[0] for row in db.rows("SELECT id::text FROM mailglass_deliveries")}
    by_delivery = {row.id: row for row in db.rows(EVENTS_BY_DELIVERY)}
    assert set(by_delivery) <= delivery_ids
    assert {row.old for row in by_delivery.values()} <= {0, events}
    assert all(row.old == 0 or row.young or row.id in filled for row in by_delivery.values())
