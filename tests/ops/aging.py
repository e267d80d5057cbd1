"""Writers of another time: what is inserted while a block runs is as many days old as it says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
