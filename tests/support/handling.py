"""What the tests of handlers share: a clean registry, handlers that leave an effect, and the state of the outbox."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from mailglass_reconcile import DeliveryEvent, on_event
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.event_types import TYPES

EFFECT = sa.text("INSERT INTO witness.effects VALUES (:handler, :event_id)")


@pytest.fixture
def handler_db(db: Any) -> Iterator[Any]:
    """The test's database, in which all types have handlers, although this process has none yet."""
    registry._registered.clear()
    handle(db)
    yield db
    registry._registered.clear()


def handle(db: Any, *types: str) -> None:
    """Let the database know that there are handlers of types, or of all, as if a dispatcher had been there."""
    db.handled.update(types or TYPES)
    db.run(
        "INSERT INTO mailglass_handled_types SELECT unnest(CAST(:types AS text[])), now() ON CONFLICT DO NOTHING",
        types=list(types or TYPES),
    )


def leave_effect(name: str, connection: sa.Connection, event: DeliveryEvent) -> None:
    """Do what a test's handler does: write down, through the connection, that it was here."""
    connection.execute(EFFECT, {"handler": name, "event_id": event.event_id})


def leaving(name: str, *types: str) -> list[DeliveryEvent]:
    """Register a handler that leaves an effect, and return the list of the events that it is told."""
    told: list[DeliveryEvent] = []

    @on_event(*(types or ("*",)), name=name)
    def handler(connection: sa.Connection, event: DeliveryEvent) -> None:
        told.append(event)
        leave_effect(name, connection, event)

    return told


def failing(name: str, error: BaseException, *, times: int = 1_000) -> list[DeliveryEvent]:
    """Register a handler that leaves an effect and then fails, *times* times, and return the events that it is told."""
    told: list[DeliveryEvent] = []

    @on_event("*", name=name)
    def handler(connection: sa.Connection, event: DeliveryEvent) -> None:
        told.append(event)
        leave_effect(name, connection, event)
        if len(told) <= times:
            raise error

    return told


def effects(db: Any) -> dict[str, int]:
    """Return how many effects each handler has left."""
    return {row.handler: row.n for row in db.rows("SELECT handler, count(*) AS n FROM witness.effects GROUP BY 1")}


def states(db: Any) -> dict[str, int]:
    """Return how many rows of the outbox are in each state."""
    return {row.state: row.n for row in db.rows("SELECT state, count(*) AS n FROM mailglass_handler_outbox GROUP BY 1")}


def make_due(db: Any) -> None:
    """Let all rows that wait be due now, as if their time had passed."""
    db.run(
        "UPDATE mailglass_handler_outbox SET next_at = now()::timestamp - interval '1 second' WHERE state = 'waiting'"
    )
