"""Postgres by Django's settings: SQLAlchemy on Django's own connection, and an engine with separate connections."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, InterfaceError, OperationalError, connections, transaction

from mailglass_reconcile.contrib.django.project import alias, connection_wrapper
from mailglass_reconcile.errors import (
    CONTENTION_SQLSTATES,
    OUTAGE_SQLSTATES,
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    is_transient,
)
from mailglass_reconcile.handlers.execution import Begin, HandlerEndedTransactionError, HandlerTransaction
from mailglass_reconcile.record.after_commit import broadcast
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules.connection_errors import Server
from mailglass_reconcile.store import engines

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_PAUSES_SECONDS = (0.05, 0.2, 0.5)
"""Pauses before each further attempt; a request waits for them."""

CURSOR_PARAMETERS = ("context", "cursor_factory")
"""Parameters with which Django's connections return values in Django's types."""


@contextmanager
def connection(using: str | None = None) -> Iterator[sa.Connection]:
    """Lend Django's own connection to SQLAlchemy, in `transaction.atomic(using)`, for our functions or your statements.

    Django commits or rolls back these writes together with the application's own. If the block raises, only its writes
    are rolled back.

    Args:
        using: A name in `DATABASES`; None is `MAILGLASS_DATABASE_ALIAS`.

    Raises:
        ConfigurationError: There is no such database, or it is not PostgreSQL.
    """
    name = alias() if using is None else using
    connection_wrapper(name)
    with transaction.atomic(name), _shared_engine(name).connect() as sa_connection, sa_connection.begin():
        yield sa_connection


def record(action: Callable[[sa.Connection], list[Result]]) -> list[Result]:
    """Write on Django's connection, enqueue the after-commit actions of the result at its commit, and return it."""
    recorded = _with_retries(action)
    after_commit(recorded)
    return recorded


def _with_retries(action: Callable[[sa.Connection], list[Result]]) -> list[Result]:
    """Call *action* with Django's connection, and return its result; transient errors are retried.

    Nothing is retried within a transaction of the application, because the error has aborted it.
    """
    wrapper = connection_wrapper(alias())
    for pause in (*RETRY_PAUSES_SECONDS, None):
        nested = wrapper.in_atomic_block
        try:
            nested = nested or not wrapper.get_autocommit()
            with connection() as sa_connection:
                return action(sa_connection)
        except Exception as error:
            if pause is None or nested or not _can_retry(error):
                raise
            wrapper.close_if_unusable_or_obsolete()
            time.sleep(pause)
    raise AssertionError("unreachable")


def _can_retry(error: BaseException) -> bool:
    """Return True if *error*, ours, SQLAlchemy's or Django's, is a lost connection or a conflict of transactions."""
    if isinstance(error, MailglassReconcileError):
        return error.is_transient
    if isinstance(error, sa.exc.DBAPIError):
        return is_transient(error)
    if isinstance(error, Error):
        state = getattr(error.__cause__, "sqlstate", None)
        is_connection_lost = isinstance(error, OperationalError | InterfaceError) and (
            state is None or state[:2] in ("08", "57")
        )
        return is_connection_lost or state in CONTENTION_SQLSTATES | OUTAGE_SQLSTATES
    return False


def after_commit(recorded: Sequence[Any]) -> None:
    """Broadcast *recorded*, and look up its ids once more, when Django has committed."""
    wrapper = connection_wrapper(alias())
    if wrapper.commit_on_exit if wrapper.in_atomic_block else wrapper.get_autocommit():
        transaction.on_commit(partial(broadcast, recorded), using=alias(), robust=True)
    else:  # Django runs no hooks at a commit by the application
        _warn_of_autocommit(alias())


@cache
def _warn_of_autocommit(name: str) -> None:
    logger.warning(
        "autocommit is off in DATABASES[%r]: what is recorded there is not broadcast, and the next sweep links it", name
    )


def require_autocommit() -> None:
    """Refuse a connection without autocommit outside of `atomic()`: nothing would commit our writes.

    Raises:
        ConfigurationError: `AUTOCOMMIT` is False, or `set_autocommit(False)` was called.
    """
    wrapper = connection_wrapper(alias())
    if not (wrapper.in_atomic_block or wrapper.get_autocommit()):
        raise ConfigurationError(
            f"autocommit is off in DATABASES[{alias()!r}], so nothing would be committed: remove AUTOCOMMIT, or do this"
            " in transaction.atomic()"
        )


@cache
def engine(name: str) -> sa.Engine:
    """Return an engine with separate connections, for sweeps, migrations and the command.

    Each connects to the current database of `DATABASES[name]`: under Django's test runner, to the test database.
    """
    return engines.create_engine_with(lambda: _open(name), lambda: _server(name))


class _SharedConnection:
    """Django's connection as SQLAlchemy gets it: commit, rollback and close do nothing."""

    __slots__ = ("_connection",)

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        """Do nothing: Django commits."""

    def rollback(self) -> None:
        """Do nothing: Django rolls back."""

    def close(self) -> None:
        """Do nothing: Django closes."""

    def cursor(self) -> psycopg.Cursor[Any]:
        """Return a cursor that sends values as parameters; Django's cursors put them into the statement's text."""
        return psycopg.Cursor(self._connection)

    def add_notice_handler(self, handler: Callable[..., None]) -> None:
        """Do nothing: the handler would never be removed."""


@cache
def _shared_engine(name: str) -> sa.Engine:
    shared = engines.create_engine_with(lambda: _share_connection(name), lambda: _server(name))
    return shared.execution_options(**{engines.SEPARATE: partial(engine, name)})


def _share_connection(name: str) -> _SharedConnection:
    driver = connection_wrapper(name).connection
    if not isinstance(driver, psycopg.Connection):
        raise ConfigurationError(f"DATABASES[{name!r}] is not on psycopg 3: use Django's own PostgreSQL backend")
    return _SharedConnection(driver)


def _server(name: str) -> Server:
    django_settings = connection_wrapper(name).settings_dict
    options = django_settings["OPTIONS"]
    host, port = django_settings["HOST"] or options.get("host"), django_settings["PORT"] or options.get("port") or 5432
    return Server(
        "Postgres", connection_errors.format_location(host, port, django_settings["NAME"]), f"DATABASES[{name!r}]"
    )


def _open(name: str) -> psycopg.Connection[Any]:
    wrapper = connection_wrapper(name)
    try:
        parameters = wrapper.get_connection_params()
    except ImproperlyConfigured:
        raise ConfigurationError(f"DATABASES[{name!r}] has no usable NAME") from None
    options = {key: value for key, value in parameters.items() if key not in CURSOR_PARAMETERS}
    options = {"connect_timeout": engines.CONNECT_TIMEOUT_SECONDS, **options, "prepare_threshold": None}
    driver_connection = psycopg.connect(**options)
    role = wrapper.settings_dict["OPTIONS"].get("assume_role")
    if role:
        try:
            driver_connection.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(role)))
            driver_connection.commit()
        except psycopg.Error:
            driver_connection.close()
            raise
    return driver_connection


@contextmanager
def open_handlers_connection() -> Iterator[Begin]:
    """Open Django's connection for handlers, which work in `atomic()`, so that models are part of it."""
    renew_connections()
    try:
        require_autocommit()
        yield _begin
    except Error as error:
        state = getattr(error.__cause__, "sqlstate", None)
        database_name = f"DATABASES[{alias()!r}]"
        if state is None or state[:2] in ("08", "57"):
            raise DatabaseUnavailableError(
                f"cannot reach or use {database_name}: {state or type(error).__name__}"
            ) from None
        raise DatabaseRefusedError(f"{database_name} refused a statement (SQLSTATE {state})") from None


def renew_connections() -> None:
    """Close this thread's connections that are broken or too old, but none on which a transaction is open."""
    for wrapper in connections.all(initialized_only=True):
        if wrapper.connection is not None and not wrapper.in_atomic_block and wrapper.get_autocommit():
            wrapper.close_if_unusable_or_obsolete()


@contextmanager
def _begin() -> Iterator[HandlerTransaction]:
    """Begin a transaction for one handler; in a transaction of the application, `atomic()` makes it a savepoint."""
    wrapper = connection_wrapper(alias())
    nested = wrapper.in_atomic_block
    with connection() as sa_connection:
        yield HandlerTransaction(sa_connection, nested)
        if sa_connection.closed or not sa_connection.in_transaction():
            raise HandlerEndedTransactionError
