"""The connection that handlers work on: the application's own, with its own settings.

By default it is one of this process's engine. A framework with connections of its own, such as Django, puts them in
its place with `use`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors


class Work(NamedTuple):
    """A transaction that handlers work in.

    `connection` is what a handler is given, `ours` the same connection for our own statements, and `savepoint` begins a
    savepoint, which is rolled back if its block raises.
    """

    ours: sa.Connection
    connection: Any
    savepoint: Callable[[], AbstractContextManager[Any]]


Begin = Callable[[], AbstractContextManager[Work]]
"""Begins a transaction, which is committed at the end of the block, and rolled back if it raises."""

Connected = Callable[[], AbstractContextManager[Begin]]
"""Opens what one dispatcher works on, and closes it."""


class CommittedError(Exception):
    """A handler wanted to commit."""


@contextmanager
def of_engine() -> Iterator[Begin]:
    """Work on one connection of this process's engine."""
    with database_errors():
        connection = runtime.get_engine().connect()
    ours_to_commit = False

    def refuse(_connection: sa.Connection) -> None:
        if not ours_to_commit:
            connection.connection.rollback()  # SQLAlchemy takes the transaction for ended now
            raise CommittedError("a handler must not commit: what it did is committed with the note that it did it")

    @contextmanager
    def begin() -> Iterator[Work]:
        nonlocal ours_to_commit
        ours_to_commit = False
        with connection.begin():
            yield Work(connection, connection, connection.begin_nested)
            ours_to_commit = True

    sa.event.listen(connection, "commit", refuse)
    with connection:
        yield begin


_places: list[Connected] = [of_engine]


def use(place: Connected | None) -> None:
    """Let handlers work on *place* from now on, in this process; None is the engine's connections again."""
    _places[:] = [of_engine if place is None else place]


def connected() -> AbstractContextManager[Begin]:
    """Open what a dispatcher works on."""
    return _places[0]()
