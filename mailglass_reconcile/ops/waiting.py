"""The events that wait for their handlers, those that fail among them, and dead ones: by handler and error."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from mailglass_reconcile import runtime
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.store import outbox
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.outbox import Facts

LISTED = 1_000
DEAD_GROUPS = 50
TIMEOUT_MS = 24_000

# What fails comes first, then what is due first.
_WAITING = """
SELECT event_id::text, delivery_id::text, type, attempts, done, error,
       to_json(next_at) #>> '{}' || 'Z' AS next_at
  FROM {schema}.mailglass_handler_outbox AS o WHERE state = 'waiting'
 ORDER BY least(attempts, 1) DESC, o.next_at, o.event_id LIMIT :size
"""

_GROUPS = """
SELECT type, error, done, attempts > 0 AS failing, count(*) AS number,
       to_json(min(next_at)) #>> '{}' || 'Z' AS next_at
  FROM {schema}.mailglass_handler_outbox WHERE state = 'waiting'
 GROUP BY 1, 2, 3, 4 ORDER BY 4 DESC, 5 DESC, 1, 2, 3
"""


_DEAD = """
SELECT type, error, done, count(*) AS number, to_json(max(finished_at)) #>> '{}' || 'Z' AS dead_since
  FROM {schema}.mailglass_handler_outbox WHERE state = 'dead'
 GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT :size
"""


@dataclass(frozen=True, slots=True)
class Group:
    """Waiting events that have the same handlers left and failed in the same way.

    Attributes:
        type: Their type.
        handlers: The handlers of this process that are not done with them; none if it has not loaded their module.
        done: The handlers that are done.
        error: The class of the last error; None if they were not tried yet.
        number: How many.
        next_at: The first of their next attempts, in ISO 8601, UTC.
    """

    type: str
    handlers: tuple[str, ...]
    done: tuple[str, ...]
    error: str | None
    number: int
    next_at: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `dispatch --waiting --json` prints them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Dead:
    """Dead events that have the same handlers left and failed in the same way; fields as those of `Group`.

    Attributes:
        type: Their type.
        handlers: The handlers of this process that are not done with them.
        done: The handlers that are done.
        error: The class of the last error.
        number: How many.
        dead_since: When the last of them died, in ISO 8601, UTC.
    """

    type: str
    handlers: tuple[str, ...]
    done: tuple[str, ...]
    error: str | None
    number: int
    dead_since: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits.

    Attributes:
        groups: By handler and error: those that fail first, then the largest.
        events: The first of them, at most 1,000: `event_id`, `delivery_id`, `type`, `attempts`, `done`, `error` and
            `next_at`.
        total: How many wait.
    """

    groups: list[Group]
    events: list[dict[str, Any]]
    total: int


def backlog(database: Database) -> Backlog:
    runtime.load_imports(to_read=True)
    with database.reading(TIMEOUT_MS) as tx:
        rows = tx.execute(_GROUPS).all()
        events = [dict(row) for row in tx.execute(_WAITING, {"size": LISTED}).mappings()]
    groups = [
        Group(row.type, _left(row.type, row.done), tuple(row.done), row.error, row.number, row.next_at) for row in rows
    ]
    return Backlog(groups, events, sum(one.number for one in groups))


def dead(database: Database) -> list[Dead]:
    """Return the dead events by handler and error, the largest groups first, at most 50."""
    runtime.load_imports(to_read=True)
    with database.reading(TIMEOUT_MS) as tx:
        rows = tx.execute(_DEAD, {"size": DEAD_GROUPS}).all()
    return [
        Dead(row.type, _left(row.type, row.done), tuple(row.done), row.error, row.number, row.dead_since)
        for row in rows
    ]


def dead_events(database: Database, size: int) -> list[dict[str, Any]]:
    """Return the *size* events that died last, as `outbox.dead` does."""
    with database.reading(TIMEOUT_MS) as tx:
        return outbox.dead(tx, size)


def facts(database: Database) -> Facts:
    """Return how much waits, fails and is dead."""
    with database.reading(TIMEOUT_MS) as tx:
        return outbox.facts(tx)


def _left(type_: str, done: Collection[str]) -> tuple[str, ...]:
    return tuple(one.name for one in handlers.handlers_of(type_) if one.name not in done)
