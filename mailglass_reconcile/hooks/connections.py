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


class EndedError(Exception):
    """A handler has ended the transaction that it ran in."""


@contextmanager
def of_engine() -> Iterator[Begin]:
    """Work on one connection of this process's engine."""
    engine = _OfEngine(runtime.get_engine())
    try:
        yield engine.begin
    finally:
        engine.close()


class _OfEngine:
    """A connection that is kept from one transaction to the next, but not after one that has failed."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._handlers_at_work = False

    @contextmanager
    def begin(self) -> Iterator[Work]:
        connection = self._connected()
        try:
            with connection.begin() as transaction:
                self._handlers_at_work = True
                yield Work(connection, connection, connection.begin_nested)
                self._handlers_at_work = False
                if not transaction.is_active:
                    raise EndedError
        except BaseException:
            connection.invalidate()  # whatever a handler has made of it
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            sa.event.listen(self._connection, "commit", self._refuse)
        return self._connection

    def _refuse(self, _connection: sa.Connection) -> None:
        if self._handlers_at_work:
            raise CommittedError("a handler must not commit: what it did is committed with the note that it did it")


_places: list[Connected] = [of_engine]


def use(place: Connected | None) -> None:
    """Let handlers work on *place* from now on, in this process; None is the engine's connections again."""
    _places[:] = [of_engine if place is None else place]


def connected() -> AbstractContextManager[Begin]:
    """Open what a dispatcher works on."""
    return _places[0]()
