"""Where handlers run, and how one is called: it may fail in any way, which costs that handler only.

They work on the application's own connection, with its own settings. By default it is one of this process's engine. A
framework with connections of its own, such as Django, puts them in its place with `use`.
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
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.addresses import ERASED
from mailglass_reconcile.rules.events import DeliveryEvent
from mailglass_reconcile.rules.handlers import RegisteredHandler
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.store.outbox import Job

logger = logging.getLogger(__name__)

log_throttle = LogThrottle()

HANDLER_SECONDS = 30
"""What one statement of a handler, and a handler in all, may take."""


class Work(NamedTuple):
    """A transaction that one handler works in, and `connection`, which it is given.

    `nested` says that it is a savepoint in a transaction of the application, which gets its settings back.
    """

    connection: sa.Connection
    nested: bool = False


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
                yield Work(connection)
                self._handlers_at_work = False
                if connection.closed or not transaction.is_active:
                    raise EndedError
        except BaseException:
            self._drop(connection)
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _drop(self, connection: sa.Connection) -> None:
        """Do not use a connection again after a failure: a handler may have done anything to it."""
        with suppress(sa.exc.SQLAlchemyError):  # a handler may have closed it
            connection.invalidate()
        self._handlers_at_work = False
        self.close()

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            sa.event.listen(self._connection, "commit", self._refuse)
        return self._connection

    def _refuse(self, _connection: sa.Connection) -> None:
        if self._handlers_at_work:
            raise CommittedError(
                "a handler must not commit: its work is committed together with the record that it ran"
            )


def is_contention(error: BaseException) -> bool:
    """Whether *error*, ours, SQLAlchemy's or a framework's, is a serialization failure or a deadlock."""
    raised = [
        candidate for candidate in (error, error.__context__) if candidate is not None
    ]  # ours replaces the driver's
    causes = [getattr(candidate, "orig", None) or candidate.__cause__ or candidate for candidate in raised]
    return any(getattr(cause, "sqlstate", None) in CONTENTION_SQLSTATES for cause in causes)


class _Used:
    connected: Connected = staticmethod(of_engine)


def use(connected_: Connected | None) -> None:
    """Let handlers work on what *connected_* opens from now on, in this process; None is the engine's connections."""
    _Used.connected = staticmethod(connected_ or of_engine)


def connected() -> AbstractContextManager[Begin]:
    """Open what a dispatcher works on."""
    return _Used.connected()


def call(handler: RegisteredHandler, connection: sa.Connection, event: DeliveryEvent) -> None:
    began = time.monotonic()
    _require_finished(handler.function(connection, event))
    if time.monotonic() - began > HANDLER_SECONDS:
        raise TimeoutError


def log_error(handler: RegisteredHandler, job: Job, error: Exception) -> str:
    """Log a handler's error by its class and place, because its words may hold an address; return the class.

    One line for each cause and minute: the same error comes with thousands of events.
    """
    name = type(error).__name__[: registry.MAX_NAME]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if handler.location and frame.filename == handler.location[0]] or frames
    at = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
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


def _require_finished(returned: Any) -> None:
    """Fail if a handler returned what has yet to be awaited or iterated: it has done nothing."""
    if inspect.isawaitable(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise TypeError("the handler returned a coroutine or generator, which is never run")


def event_of(job: Job) -> DeliveryEvent | None:
    """Return the event that a handler is called with; None if the ledger does not have it any more."""
    if job.tenant_id is None:
        return None
    return DeliveryEvent(
        event_id=UUID(job.event_id),
        type=job.type,
        occurred_at=job.occurred_at.replace(tzinfo=dt.UTC),
        tenant_id=job.tenant_id,
        delivery_id=UUID(job.delivery_id),
        provider=providers.canonical(job.provider) if job.provider else None,
        message_id=job.message_id,
        recipient=None if job.recipient and job.recipient.endswith(ERASED) else job.recipient,
        reject_reason=job.reject_reason,
        bounce=job.bounce,
        smtp_status=smtp_status(job.smtp_status),
        attempt=job.attempts,
    )
