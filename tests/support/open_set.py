"""Events as any writer inserts them, for the tests of the triggers."""

import datetime as dt
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from catalog import Installation
from history import new_id

INSERT = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, needs_reconciliation
                              {columns})
VALUES (CAST(:id AS uuid), :tenant, CAST(:delivery AS uuid), :type, now(), :key, :orphan {values})
"""


def insert(connection: sa.Connection, inserted_at: str | None = None, **columns: object) -> str:
    """Insert one event, by default an orphan, and return its id."""
    row = {
        "id": new_id(),
        "tenant": "acme",
        "delivery": None,
        "type": "delivered",
        "key": None,
        "orphan": True,
        **columns,
    }
    more = {"columns": ", inserted_at", "values": ", CAST(:inserted_at AS timestamp)"} if inserted_at else {}
    statement = INSERT.format(**(more or {"columns": "", "values": ""}))
    connection.execute(sa.text(statement), {**row, "inserted_at": inserted_at} if inserted_at else row)
    return str(row["id"])


@pytest.fixture
def database(pool_of, shape) -> Iterator[Installation]:
    """A migrated database without rows, of each version."""
    with pool_of(shape).acquire() as pooled:
        yield Installation(pooled.settings, pooled.engine)


ARRIVED = "SELECT arrived_at FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)"


def age(database: Installation, event_id: str) -> float | None:
    """Return how many seconds ago an open orphan arrived, or None if it is not open."""
    arrivals = database.values(ARRIVED, id=event_id)
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    return (now - arrivals[0]).total_seconds() if arrivals else None
