"""What is published once a caller's Session has committed.

A savepoint that the caller rolls back, with its Session or with its connection, takes its messages with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub import Message, Publisher

logger = logging.getLogger(__name__)

_KEY = "mailglass_reconcile.pending"


def publish(messages: Sequence[Message]) -> None:
    """Publish *messages* of committed events; a Redis that does not answer costs at most a second and no error."""
    if messages:
        Publisher(runtime.get_redis()).publish(messages)


def publish_after_commit(session: Session, messages: Sequence[Message]) -> None:
    """Publish *messages* when the session has committed, and not if it rolls back."""
    if not messages:
        return
    connection = session.connection()
    pending: _Pending | None = session.info.get(_KEY)
    if pending is None or pending.connection is not connection:
        pending = session.info[_KEY] = _Pending(connection)
    pending.messages.extend(messages)
    if not sa.event.contains(session, "after_commit", _committed):
        sa.event.listen(session, "after_commit", _committed)
        sa.event.listen(session, "after_transaction_end", _ended)


class _Pending:
    """What one connection's transaction is to tell, and how much of it there was at each savepoint."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.messages: list[Message] = []
        self._marks: dict[str, int] = {}
        sa.event.listen(connection, "before_cursor_execute", self._watch)

    def end(self) -> None:
        """Look at the connection no longer."""
        sa.event.remove(self.connection, "before_cursor_execute", self._watch)

    # By the statement, because the event `savepoint` does not name the savepoint.
    def _watch(self, _connection: sa.Connection, _cursor: object, statement: str, *_others: object) -> None:
        kind, _, name = statement.partition("SAVEPOINT ")
        if kind == "":
            self._marks[name] = len(self.messages)
        elif kind == "ROLLBACK TO ":
            # A savepoint without a mark is older than the first message.
            del self.messages[self._marks.get(name, 0) :]


def _committed(session: Session) -> None:
    pending = session.info.get(_KEY)
    # Still in a transaction: only a savepoint was released, or the transaction is the caller's.
    if pending is None or pending.connection.in_transaction():
        return
    messages, pending.messages = pending.messages, []
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _publish_or_log(messages)
    else:
        loop.run_in_executor(None, _publish_or_log, messages)


def _ended(session: Session, transaction: SessionTransaction) -> None:
    pending = session.info.pop(_KEY, None) if transaction.parent is None else None
    if pending is not None:
        pending.end()


def _publish_or_log(messages: Sequence[Message]) -> None:
    try:
        publish(messages)
    except ConfigurationError as error:
        logger.error("events are recorded, but their broadcasts are lost: %s", error)
