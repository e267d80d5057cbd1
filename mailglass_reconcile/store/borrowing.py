"""A caller's own transaction: our statements run in it under a savepoint, and the caller's settings come back.

A single call executes what the database keeps as functions, which have our settings by themselves. On psycopg the
savepoint travels with the first statement and its end with the last, so a call is one round trip, or two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile.errors import ConfigurationError, database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import (
    SCOPE,
    Kept,
    Transaction,
    as_driver_takes_it,
    lacks_tables,
    look_elsewhere,
)

# Planning again at each call would cost more than executing, where a plan is kept.
CALL_SCOPE = {**SCOPE, "plan_cache_mode": "force_generic_plan"}
"""The settings under which statements run in a caller's transaction, and the functions that the database keeps."""

# The caller's own values come back as one statement that restores them; Postgres computes it before it makes ours. One
# column, because the driver describes each; without parameters, so that the savepoint travels with it.
_BORROWED = {"client_encoding": "UTF8", **CALL_SCOPE}
_BORROW = "SELECT concat('SELECT {saved}') || left(concat({made}), 0)"
_BORROW = _BORROW.replace(
    "{saved}",
    ", ".join(f"set_config(''{name}'', ', quote_literal(current_setting('{name}')), ', true)" for name in _BORROWED),
).replace("{made}", ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _BORROWED.items()))
OUR_SAVEPOINT = "mailglass_reconcile"
_SAVEPOINT = f"SAVEPOINT {OUR_SAVEPOINT}"
_RELEASE = f"RELEASE SAVEPOINT {OUR_SAVEPOINT}"
_UNDO = f"ROLLBACK TO SAVEPOINT {OUR_SAVEPOINT}"
_COMMIT = "COMMIT"
_PLAIN = {"no_parameters": True}
_ENDS = "mailglass_reconcile.ends"


def ending_with_the_block(connection: sa.Connection) -> sa.Connection:
    """Mark a transaction that serves one call of this package and ends right after it.

    The call may end it itself, with its last statement: the driver then has nothing to commit, and saves a round trip.
    """
    return connection.execution_options(**{_ENDS: True})


class Borrowed(Transaction):
    """A caller's transaction: a savepoint comes with the first statement, and our settings if one needs them."""

    def __init__(self, connection: sa.Connection, settings: Settings) -> None:
        """Use *connection*, which is in a transaction, on the tables that *settings* name."""
        super().__init__(connection, settings)
        self._is_open = False
        self._restore = ""
        self._needs_settings = not _is_utf8(connection)

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one statement under our settings, as `Transaction.execute`."""
        if not self._restore:
            self._make_settings()
        return super().execute(statement, parameters)

    def call(self, kept: Kept, parameters: Mapping[str, str | None], *, last: bool = False) -> Sequence[Any]:
        """Call the function, which has our settings by itself; on psycopg the savepoint travels with it."""
        if self._needs_settings and not self._restore:
            self._make_settings()
        before = self._begin()
        if _goes_directly(self.connection):
            after = (_COMMIT if self._ends else _RELEASE,) if last and not self._restore else ()
            text = "; ".join((*before, as_driver_takes_it(_call_of(kept), self.schema), *after))
            rows = _directly(self.connection, text, parameters)
            self._is_open = not after
            return rows
        return super().execute(_call_of(kept), parameters).all()

    def undo(self) -> None:
        """Undo what the block did, and the settings with it."""
        if self._is_open:
            _send(self.connection, _UNDO)
            self._restore = ""

    def leave(self) -> None:
        """End the savepoint, and restore the caller's settings."""
        if self._is_open and not self._ends:
            _send(self.connection, _RELEASE, *filter(None, [self._restore]))
        self._is_open = False

    @property
    def _ends(self) -> bool:
        return bool(self.connection.get_execution_options().get(_ENDS))

    def _begin(self) -> tuple[str, ...]:
        """Return the savepoint, if it is still to come, for the next statement to bring along; or send it by itself."""
        before = () if self._is_open else (_SAVEPOINT,)
        self._is_open = True
        if before and not _goes_directly(self.connection):
            _send(self.connection, *before)
            return ()
        return before

    def _make_settings(self) -> None:
        before = self._begin()
        if _goes_directly(self.connection):
            self._restore = _directly(self.connection, "; ".join((*before, _BORROW)))[0][0]
            return
        self._restore = self.connection.exec_driver_sql(_BORROW, execution_options=_PLAIN).one()[0]


@contextmanager
def borrowed(given: object, settings: Settings) -> Iterator[Transaction]:
    """Use a caller's transaction in this package's scope, under a savepoint, and restore its settings at the end.

    If the block raises, what the block did is undone, and the caller's transaction continues.

    Args:
        given: A SQLAlchemy Connection or Session in a transaction.
        settings: Name the tables.

    Raises:
        ConfigurationError: The connection is in autocommit mode, psycopg2's own text encoding is not UTF8, or the
            tables are in another schema; the message says what to set.
        MailglassReconcileError: The database refused.
        TypeError: *given* is something else.
    """
    with database_errors():
        connection = given if isinstance(given, sa.Connection) else engines.connection_of_session(given)
        _require_usable(connection.connection.dbapi_connection)
        tx = Borrowed(connection, settings)
        try:
            yield tx
        except BaseException as error:
            with suppress(SQLAlchemyError):  # a connection that is lost has nothing to undo
                try:
                    tx.undo()
                    if lacks_tables(error):
                        look_elsewhere(tx)
                finally:
                    tx.undo()
                    tx.leave()
            raise
        tx.leave()


@cache
def _call_of(kept: Kept) -> str:
    """Return the statement that calls the function."""
    arguments = ", ".join(f"CAST(:{name} AS pg_catalog.text)" for name in kept.parameters)
    return f"SELECT * FROM {{schema}}.{kept.name}({arguments})"  # noqa: S608 - names of this package


def _require_usable(driver: Any) -> None:
    if getattr(driver, "autocommit", False):
        raise ConfigurationError(
            "the connection's isolation_level is AUTOCOMMIT, so its statements could not be kept or undone together:"
            " pass one in a transaction, such as that of `with engine.begin() as connection`"
        )
    # psycopg2 does not notice that a statement changes the encoding; the other drivers do.
    if getattr(driver, "encoding", "UTF8") != "UTF8":
        raise ConfigurationError(
            'the connection\'s client_encoding is not UTF8: pass `client_encoding="utf8"` to create_engine'
        )


def _send(connection: sa.Connection, *statements: str) -> None:
    """Execute statements without parameters or results; psycopg and asyncpg take several at once."""
    text = "; ".join(statements)
    if _goes_directly(connection):
        _directly(connection, text)
        return
    driver: Any = connection.connection.driver_connection
    # SQLAlchemy begins asyncpg's transaction with the first statement that it sends itself.
    if connection.dialect.driver == "asyncpg" and driver.is_in_transaction():
        with suppress(Exception):  # of a failure SQLAlchemy says which it is
            adapted: Any = connection.connection.dbapi_connection
            adapted.run_async(lambda driver: driver.execute(text))
            return
    for statement in (text,) if connection.dialect.driver == "psycopg" else statements:
        connection.exec_driver_sql(statement, execution_options=_PLAIN)


def _goes_directly(connection: sa.Connection) -> bool:
    """Whether the driver is psycopg's synchronous one, and SQLAlchemy knows of the transaction already."""
    return _is_psycopg(connection) and connection.in_transaction()


def _is_psycopg(connection: sa.Connection) -> bool:
    return connection.dialect.driver == "psycopg" and not connection.dialect.is_async


def _is_utf8(connection: sa.Connection) -> bool:
    """Whether connection and server are UTF8, so that any text can pass."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver == "psycopg":
        status = driver.info.parameter_status
        return bool(status("client_encoding") == status("server_encoding") == "UTF8")
    if connection.dialect.driver == "asyncpg":
        return bool(driver.get_settings().client_encoding == "UTF8")
    return True  # psycopg2: `_require_usable` has looked


def answer(connection: sa.Connection, settings: Settings, kept: Kept, parameters: Mapping[str, str]) -> Any:
    """Return the one value of a statement that the database keeps, on a connection as it is."""
    if _is_psycopg(connection):
        return _directly(connection, as_driver_takes_it(_call_of(kept), settings.database_schema), parameters)[0][0]
    return Transaction(connection, settings).execute(_call_of(kept), parameters).scalar_one()


def _directly(
    connection: sa.Connection, text: str, parameters: Mapping[str, str | None] | None = None
) -> list[tuple[Any, ...]]:
    """Execute *text* past SQLAlchemy, whose own work costs as much; return the rows of the statement that has some."""
    driver: Any = connection.connection.dbapi_connection
    rows: list[tuple[Any, ...]] = []
    try:
        # The parameters become part of the text, because only a text without any may be several statements.
        with psycopg.ClientCursor(driver) as cursor:
            cursor.execute(text, parameters)
            while True:
                if cursor.pgresult and cursor.pgresult.nfields:
                    rows = cursor.fetchall()
                if not cursor.nextset():
                    return rows
    except psycopg.Error as error:
        raise _as_sqlalchemys(connection, text, error, is_lost=bool(driver.closed)) from None


def _as_sqlalchemys(connection: sa.Connection, text: str, error: psycopg.Error, *, is_lost: bool) -> BaseException:
    if is_lost:
        with suppress(DBAPIError):  # SQLAlchemy notices the loss: its pool has others of that server
            connection.exec_driver_sql("SELECT 1")
    return DBAPIError.instance(text, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=is_lost)
