"""The step after the commit of a Session that a caller hands over.

A savepoint that the caller rolls back, with its Session or with its connection, takes its part of that step with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from mailglass_reconcile.record.recorded import Recorded, RecordedDelivery
from mailglass_reconcile.record.telling import tell_after_commit
from mailglass_reconcile.store.callers import session_of

Done = TypeVar("Done", Recorded, RecordedDelivery)

_KEY = "mailglass_reconcile.pending"


def returned(given: object, recorded: list[Done]) -> list[Done]:
    """Return what a writer did; if a Session was *given*, its step after the commit is left to that, and taken out."""
    session = session_of(given)
    if session is None:
        return recorded
    _after_commit(session, [each for each in recorded if each.messages or each.look])
    return [replace(each, messages=(), look=None) for each in recorded]


def _after_commit(session: Session, recorded: Sequence[Recorded | RecordedDelivery]) -> None:
    if not recorded:
        return
    connection = session.connection()
    pending: _Pending | None = session.info.get(_KEY)
    if pending is None or pending.connection is not connection:
        pending = session.info[_KEY] = _Pending(connection)
    pending.recorded.extend(recorded)
    if not sa.event.contains(session, "after_commit", _committed):
        sa.event.listen(session, "after_commit", _committed)
        sa.event.listen(session, "after_transaction_end", _ended)


class _Pending:
    """What one connection's transaction leaves to do, and how much of it there was at each savepoint."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.recorded: list[Recorded | RecordedDelivery] = []
        self.committed = False
        self._marks: dict[str, int] = {}
        sa.event.listen(connection, "before_cursor_execute", self._watch)

    def end(self) -> None:
        """Look at the connection no longer."""
        sa.event.remove(self.connection, "before_cursor_execute", self._watch)

    # By the statement, because the event `savepoint` does not name the savepoint.
    def _watch(self, _connection: sa.Connection, _cursor: object, statement: str, *_others: object) -> None:
        kind, _, name = statement.partition("SAVEPOINT ")
        if kind == "":
            self._marks[name] = len(self.recorded)
        elif kind == "ROLLBACK TO ":
            # A savepoint without a mark is older than the first of them.
            del self.recorded[self._marks.get(name, 0) :]


def _committed(session: Session) -> None:
    pending = session.info.get(_KEY)
    # Still in a transaction: only a savepoint was released, or the transaction is the caller's.
    if pending is not None and not pending.connection.in_transaction():
        pending.committed = True


# Not in `_committed`: the session's connection is back in its pool only now, and the pool may have no other.
def _ended(session: Session, transaction: SessionTransaction) -> None:
    pending = session.info.pop(_KEY, None) if transaction.parent is None else None
    if pending is None:
        return
    pending.end()
    if pending.committed and pending.recorded:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            tell_after_commit(pending.recorded)
        else:
            loop.run_in_executor(None, tell_after_commit, pending.recorded)
