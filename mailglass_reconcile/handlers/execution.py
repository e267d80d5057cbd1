"""Execution of handlers: their connection and transaction, and the call, which may fail without harm to other handlers.

They work on the application's own connection, with its own settings. By default it is one of this process's engine. A
framework with connections of its own, such as Django, sets them with `runtime.configure_framework`.
"""

from __future__ import annotations

import datetime as dt
import inspect
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import CONTENTION_SQLSTATES
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import ERASED
from mailglass_reconcile.rules.events import DeliveryEvent
from mailglass_reconcile.rules.handlers import RegisteredHandler
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.store.tables.handler_jobs import Job

logger = logging.getLogger(__name__)

log_throttle = LogThrottle()


class HandlerTransaction(NamedTuple):
    """The transaction of one handler, on the `connection` that the handler gets.

    `nested` says that it is a savepoint in a transaction of the application, which gets its settings back.
    """

    connection: sa.Connection
    nested: bool = False


Begin = Callable[[], AbstractContextManager[HandlerTransaction]]
"""Begins a transaction; the end of the block commits it, an error rolls it back."""


class HandlerCommittedError(Exception):
    """A handler tried to commit."""


class HandlerEndedTransactionError(Exception):
    """A handler ended the transaction that it ran in."""


class HandlerTimeoutError(Exception):
    """A handler took longer than its limit: Postgres may have cancelled its statement or ended its connection."""


@contextmanager
def from_engine() -> Iterator[Begin]:
    """Open one connection of this process's engine for a block."""
    connection = _EngineConnection(runtime.get_engine())
    try:
        yield connection.begin
    finally:
        connection.close()


class _EngineConnection:
    """A connection that is reused for the next transaction, unless one has failed."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._is_handler_running = False

    @contextmanager
    def begin(self) -> Iterator[HandlerTransaction]:
        connection = self._connect()
        try:
            with connection.begin() as transaction:
                self._is_handler_running = True
                yield HandlerTransaction(connection)
                self._is_handler_running = False
                if connection.closed or not transaction.is_active:
                    raise HandlerEndedTransactionError
        except BaseException:
            self._discard(connection)
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _discard(self, connection: sa.Connection) -> None:
        """Invalidate a connection after a failure: a handler may have done anything to it."""
        with suppress(sa.exc.SQLAlchemyError):  # a handler may have closed it
            connection.invalidate()
        self._is_handler_running = False
        self.close()

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            sa.event.listen(self._connection, "commit", self._refuse_commit)
        return self._connection

    def _refuse_commit(self, _connection: sa.Connection) -> None:
        if self._is_handler_running:
            raise HandlerCommittedError(
                "a handler must not commit: its work is committed together with the record that it ran"
            )


def is_contention(error: BaseException) -> bool:
    """Return True if *error*, ours, SQLAlchemy's or a framework's, is a serialization failure or a deadlock."""
    raised = [
        candidate for candidate in (error, error.__context__) if candidate is not None
    ]  # ours replaces the driver's
    causes = [getattr(candidate, "orig", None) or candidate.__cause__ or candidate for candidate in raised]
    return any(getattr(cause, "sqlstate", None) in CONTENTION_SQLSTATES for cause in causes)


def open_connection() -> AbstractContextManager[Begin]:
    """Open the connection of a dispatcher for a block: a framework's, or one of this process's engine."""
    return (runtime.framework_handlers_connection() or from_engine)()


def call_handler(handler: RegisteredHandler, connection: sa.Connection, event: DeliveryEvent, seconds: float) -> None:
    """Call a handler; raise an error if it returned a coroutine or generator, or took longer than *seconds*."""
    began = time.monotonic()
    try:
        _require_finished(handler.function(connection, event))
    except Exception as error:
        if time.monotonic() - began > seconds:
            raise HandlerTimeoutError().with_traceback(error.__traceback__) from error
        raise
    if time.monotonic() - began > seconds:
        raise HandlerTimeoutError


def log_error(handler: RegisteredHandler, job: Job, error: Exception) -> str:
    """Log a handler's error by its class and place, because its words may hold an address; return the class.

    One line for each cause and minute: the same error comes with thousands of events.
    """
    name = type(error).__name__[: registry.MAX_NAME]
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if handler.location:  # its last line that ran, or if it has returned its first
        places = [place for place in places if place[0] == handler.location[0]] or [handler.location]
    at = f" at {Path(places[-1][0]).name}:{places[-1][1]}" if places else ""
    if log_throttle.allow((handler.name, name, at)):
        logger.warning(
            "handler %s failed on event %s, attempt %d: %s%s (logged once a minute)",
            handler.name,
            job.event_id,
            job.attempts,
            name,
            at,
        )
    return name


def _require_finished(result: Any) -> None:
    """Raise TypeError if a handler returned a coroutine or generator: it has done nothing."""
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("the handler returned a coroutine or generator, which is never run")


def make_event(job: Job) -> DeliveryEvent | None:
    """Make the event for a call of a handler; None if the ledger does not have it any more."""
    if job.tenant_id is None:
        return None
    return DeliveryEvent(
        event_id=UUID(job.event_id),
        type=job.type,
        occurred_at=job.occurred_at.replace(tzinfo=dt.UTC),
        tenant_id=job.tenant_id,
        delivery_id=UUID(job.delivery_id),
        provider=provider_rules.canonical(job.provider) if job.provider else None,
        message_id=job.message_id,
        recipient=None if job.recipient and job.recipient.endswith(ERASED) else job.recipient,
        reject_reason=job.reject_reason,
        bounce=job.bounce,
        smtp_status=smtp_status(job.smtp_status),
        attempt=job.attempts,
    )
