"""Helpers of the tests of handlers: a clean registry, handlers with an effect, and the state of the outbox."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from mailglass_reconcile import DeliveryEvent, on_event
from mailglass_reconcile.handlers import administration, execution, registration
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.event_types import TYPES
from mailglass_reconcile.rules.log_throttle import LogThrottle

EFFECT = sa.text("INSERT INTO witness.effects VALUES (:handler, :event_id)")

_databases: list[Any] = []
"""The database of the running test, if it is one of handlers."""


@pytest.fixture
def handler_db(db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The test's database, on which `leaving` and `failing` register their handlers."""
    registry._registered.clear()
    monkeypatch.setattr(execution, "log_throttle", LogThrottle())
    _databases.append(db)
    yield db
    _databases.clear()
    registry._registered.clear()


def register(db: Any) -> None:
    """Register this process's handlers, as a dispatcher does when it starts."""
    handle(db, *registration.own_registrations())


def handle(db: Any, *registrations: tuple[str, str]) -> None:
    """Register handlers and their types in the database, like a dispatcher that has them."""
    if not db.value("SELECT count(*) FROM mailglass_events WHERE delivery_id IS NOT NULL"):
        db.handled.update(registrations)
    db.run(
        "INSERT INTO mailglass_handled_types (handler, type, seen_at, seen_by)"
        " SELECT *, now(), 'a dispatcher' FROM unnest(CAST(:handlers AS text[]), CAST(:types AS text[]))"
        " ON CONFLICT DO NOTHING",
        handlers=[handler for handler, _ in registrations],
        types=[type_ for _, type_ in registrations],
    )


def handle_all(db: Any, *handlers: str) -> None:
    """Register handlers of all types in the database, like a dispatcher that has them."""
    handle(db, *((handler, type_) for handler in handlers for type_ in TYPES))


def enqueue(db: Any) -> None:
    """Register this process's handlers, and enqueue the events that have reached a delivery already."""
    register(db)
    if own := registration.own_registrations():
        administration.replay(db.database, own, 86_400)


def leave_effect(name: str, connection: sa.Connection, event: DeliveryEvent) -> None:
    """Write a row through the connection, as the effect of a handler."""
    connection.execute(EFFECT, {"handler": name, "event_id": event.event_id})


def leaving(name: str, *types: str) -> list[DeliveryEvent]:
    """Register a handler that leaves an effect, and return the list to which it appends its events."""
    handled: list[DeliveryEvent] = []

    @on_event(*(types or ("*",)), name=name)
    def handler(connection: sa.Connection, event: DeliveryEvent) -> None:
        handled.append(event)
        leave_effect(name, connection, event)

    for db in _databases:
        register(db)
    return handled


def failing(name: str, error: BaseException, *, times: int = 1_000) -> list[DeliveryEvent]:
    """Register a handler that leaves an effect and then fails *times* times; return the list of its events."""
    handled: list[DeliveryEvent] = []

    @on_event("*", name=name)
    def handler(connection: sa.Connection, event: DeliveryEvent) -> None:
        handled.append(event)
        leave_effect(name, connection, event)
        if len(handled) <= times:
            raise error

    for db in _databases:
        register(db)
    return handled


def effects(db: Any) -> dict[str, int]:
    """Return the number of effects of each handler."""
    return {row.handler: row.n for row in db.rows("SELECT handler, count(*) AS n FROM witness.effects GROUP BY 1")}


def states(db: Any) -> dict[str, int]:
    """Return the number of jobs in each state."""
    return {row.state: row.n for row in db.rows("SELECT state, count(*) AS n FROM mailglass_handler_outbox GROUP BY 1")}


def make_due(db: Any) -> None:
    """Make all waiting jobs due now."""
    db.run(
        "UPDATE mailglass_handler_outbox SET next_at = now()::timestamp - interval '1 second' WHERE state = 'waiting'"
    )
