"""A caller's own transaction: our statements run in it under a savepoint, and the caller's settings come back.

A single call executes what the database keeps as functions, which have our settings by themselves. On psycopg the
savepoint travels with the first statement and its end with the last, so a call is one round trip, or two. Values are
parameters of their statements on every driver, so nobody reads them in `pg_stat_activity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, NamedTuple

import psycopg
import sqlalchemy as sa
from psycopg.rows import tuple_row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile.errors import ConfigurationError, database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import (
    SCOPE,
    Kept,
    Transaction,
    array_literal,
    as_driver_takes_it,
    lacks_tables,
    look_elsewhere,
)

# Planning again at each call would cost more than executing, where a plan is kept.
CALL_SCOPE = {**SCOPE, "plan_cache_mode": "force_generic_plan"}
"""The settings under which statements run in a caller's transaction, and the functions that the database keeps."""


class Statement(NamedTuple):
    """A statement with `{schema}` for the quoted schema and `:name` for a parameter, and its parameters."""

    text: str
    parameters: Mapping[str, Any] = {}


_SAVEPOINT = Statement("SAVEPOINT mailglass_reconcile")
_RELEASE = Statement("RELEASE SAVEPOINT mailglass_reconcile")
_UNDO = Statement("ROLLBACK TO SAVEPOINT mailglass_reconcile")

# The caller's values are read before ours are made: a row of the first is what the second is computed for.
_MAKE_SETTINGS = Statement(
    """
WITH callers AS MATERIALIZED (SELECT ARRAY[{read}] AS settings)
SELECT settings, concat({make}) FROM callers
""".replace("{read}", ", ".join(f"current_setting('{name}')" for name in CALL_SCOPE)).replace(
        "{make}", ", ".join(f"set_config('{name}', '{value}', true)" for name, value in CALL_SCOPE.items())
    )
)
_RESTORE_SETTINGS = """
SELECT concat({make}) FROM (SELECT CAST(:settings AS text[]) AS settings) AS callers
""".replace("{make}", ", ".join(f"set_config('{name}', settings[{n}], true)" for n, name in enumerate(CALL_SCOPE, 1)))


class Borrowed(Transaction):
    """A caller's transaction: a savepoint comes with the first statement, and our settings if one needs them."""

    def __init__(self, connection: sa.Connection, settings: Settings) -> None:
        """Use *connection*, which is in a transaction, on the tables that *settings* name."""
        super().__init__(connection, settings)
        self._is_open = False
        self._callers_settings = ""

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one statement under our settings, as `Transaction.execute`."""
        if not self._callers_settings:
            self._callers_settings = array_literal(self._in_savepoint(_MAKE_SETTINGS)[0][0])
        return super().execute(statement, parameters)

    def call(self, kept: Kept, parameters: Mapping[str, str | None], *, last: bool = False) -> Sequence[Any]:
        """Call the function, which has our settings by itself."""
        statement = Statement(_call_of(kept), parameters)
        return self._in_savepoint(statement, last=last and not self._callers_settings)

    def undo(self) -> None:
        """Undo what the block did, and the settings with it."""
        if self._is_open:
            self._send(_UNDO)
            self._callers_settings = ""

    def leave(self) -> None:
        """End the savepoint, and restore the caller's settings."""
        if self._is_open:
            given = {"settings": self._callers_settings}
            self._send(_RELEASE, *((Statement(_RESTORE_SETTINGS, given),) if self._callers_settings else ()))
        self._is_open = False

    def _in_savepoint(self, statement: Statement, *, last: bool = False) -> Sequence[Any]:
        """Return the rows of a statement; the savepoint begins with the first, and ends with the *last*."""
        before = () if self._is_open else (_SAVEPOINT,)
        self._is_open = True
        rows = self._send(*before, statement, *((_RELEASE,) if last else ()))
        self._is_open = not last
        return rows

    def _send(self, *statements: Statement) -> Sequence[Any]:
        """Execute statements, on psycopg in one round trip, and return the rows of the one that has some."""
        if _is_psycopg(self.connection):
            if not self.connection.in_transaction():
                self.connection.begin()
            return _in_one_round_trip(self.connection, self.schema, statements)
        results = [super(Borrowed, self).execute(*statement) for statement in statements]
        return next((result.all() for result in results if result.returns_rows), [])


@contextmanager
def borrowed(given: object, settings: Settings) -> Iterator[Transaction]:
    """Use a caller's transaction in this package's scope, under a savepoint, and restore its settings at the end.

    If the block raises, what the block did is undone, and the caller's transaction continues.

    Args:
        given: A SQLAlchemy Connection or Session in a transaction.
        settings: Name the tables.

    Raises:
        ConfigurationError: The connection is in autocommit mode, its client_encoding is not UTF8, or the tables are in
            another schema; the message says what to set.
        MailglassReconcileError: The database refused.
        TypeError: *given* is something else.
    """
    with database_errors():
        connection = given if isinstance(given, sa.Connection) else engines.connection_of_session(given)
        _require_usable(connection)
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


def _require_usable(connection: sa.Connection) -> None:
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ConfigurationError(
            "the connection's isolation_level is AUTOCOMMIT, so its statements could not be kept or undone together:"
            " pass one in a transaction, such as that of `with engine.begin() as connection`"
        )
    encoding = _encoding(connection)
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the connection's client_encoding is {encoding}, which not every text can pass: set it to UTF8, such as"
            ' with `client_encoding="utf8"` in create_engine'
        )


def _encoding(connection: sa.Connection) -> str:
    """Return the encoding in which texts pass between driver and server."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver == "asyncpg":
        return str(driver.get_settings().client_encoding)
    of_server = str(driver.info.parameter_status("client_encoding"))
    # psycopg2 does not notice that a statement changes the encoding.
    return str(driver.encoding) if connection.dialect.driver == "psycopg2" and of_server == "UTF8" else of_server


def _is_psycopg(connection: sa.Connection) -> bool:
    """Whether the driver is psycopg's synchronous one."""
    return connection.dialect.driver == "psycopg" and not connection.dialect.is_async


def answer(connection: sa.Connection, settings: Settings, kept: Kept, parameters: Mapping[str, str]) -> Any:
    """Return the one row of a statement that the database keeps, on a connection as it is.

    Outside of a transaction, it begins none: it is one round trip.
    """
    statement = Statement(_call_of(kept), parameters)
    with _beginning_nothing(connection):
        if _is_psycopg(connection):
            return _in_one_round_trip(connection, settings.database_schema, [statement])[0]
        return Transaction(connection, settings).execute(*statement).one()


@contextmanager
def _beginning_nothing(connection: sa.Connection) -> Iterator[None]:
    """Let the driver send neither BEGIN nor COMMIT, which are round trips; in a transaction it does not anyway."""
    driver: Any = connection.connection.dbapi_connection
    if connection.in_transaction():
        yield
        return
    with connection.begin():
        if driver.autocommit:
            yield
            return
        driver.autocommit = True
        try:
            yield
        finally:
            with suppress(Exception):  # of a connection that is lost
                driver.autocommit = False


def _in_one_round_trip(connection: sa.Connection, schema: str, statements: Sequence[Statement]) -> list[Any]:
    """Execute *statements* past SQLAlchemy, whose own work costs as much; return the rows of the one that has some.

    They are never prepared, because PgBouncer may not keep that. A libpq without pipelines sends them one by one.
    """
    driver: Any = connection.connection.dbapi_connection
    together = len(statements) > 1 and psycopg.Pipeline.is_supported()
    texts = [as_driver_takes_it(statement.text, schema) for statement in statements]
    cursors = []
    try:
        with driver.pipeline() if together else nullcontext():
            for text, (_, parameters) in zip(texts, statements, strict=True):
                # Not the connection's own cursors: Django's put values into the text.
                cursor = psycopg.Cursor(driver, row_factory=tuple_row)
                cursors.append(cursor.execute(text, parameters, prepare=False))
    except psycopg.Error as error:
        raise _as_sqlalchemys(connection, "; ".join(texts), error, is_lost=bool(driver.closed)) from None
    return next((cursor.fetchall() for cursor in cursors if cursor.description), [])


def _as_sqlalchemys(connection: sa.Connection, text: str, error: psycopg.Error, *, is_lost: bool) -> BaseException:
    # Of a pipeline that was broken off, psycopg may raise what became of the later statements.
    while isinstance(error, psycopg.errors.PipelineAborted) and isinstance(error.__context__, psycopg.Error):
        error = error.__context__
    if is_lost:
        with suppress(DBAPIError):  # SQLAlchemy notices the loss: its pool has others of that server
            connection.exec_driver_sql("SELECT 1")
    return DBAPIError.instance(text, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=is_lost)
