"""Writers of another time: what is inserted while a block runs is as many days old as it says."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from factories import delivery_row, insert, orphan_row
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
    """Let events and deliveries that are inserted in the block be *days* old; sweeps of it look back a year."""
    db.run(_AGE.replace("{days}", str(days)))
    yield
    db.run("DROP FUNCTION witness.age() CASCADE")


def prune(db: Any, events: int | None = 30, deliveries: int | None = None, **more: object) -> PruneResult:
    """Prune with a retention in days, and return what was done."""
    update = {"retention_events_days": events, "retention_deliveries_days": deliveries, **more}
    return prune_with(Database(db.engine, db.settings.model_copy(update=update)))


LEFT = """
SELECT e.delivery_id::text AS id, count(*) FILTER (WHERE e.inserted_at < now()::timestamp - interval '30 days') AS old,
       count(*) FILTER (WHERE e.inserted_at > now()::timestamp - interval '30 days') AS young
  FROM mailglass_events AS e WHERE e.delivery_id IS NOT NULL GROUP BY 1
"""


def fill(db, deliveries: int, events: int = 3) -> dict[str, str]:
    """Insert deliveries of forty days ago with so many events each; return their message ids by their ids."""
    rows = [delivery_row(f"m-{number}") for number in range(deliveries)]
    with days_ago(db, 40):
        given = {"needs_reconciliation": False, "type": "opened", "occurred_at": "2026-01-03", "age_seconds": 0}
        its = [orphan_row({}, delivery_id=row["id"], **given) for row in rows for _ in range(events)]
        random.Random(1).shuffle(its)
        insert(db, rows, its)
    return {row["id"]: row["message_id"] for row in rows}


def check(db, known: dict[str, str], events: int = 3) -> None:
    """Of each delivery all old events are there, or none; what was attached meanwhile has its delivery."""
    there = {row[0] for row in db.rows("SELECT id::text FROM mailglass_deliveries")}
    left = {row.id: row for row in db.rows(LEFT)}
    assert set(left) <= there
    assert {row.old for row in left.values()} <= {0, events}
    assert all(row.old == 0 or row.young or row.id in known for row in left.values())
