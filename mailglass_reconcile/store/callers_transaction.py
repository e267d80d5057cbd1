"""A caller's own transaction: our statements run in it under a savepoint, and the caller's settings come back.

A single call executes functions of the schema, which have our settings by themselves. On psycopg the
savepoint travels with the first statement and its end with the last, so a call is one round trip, or two. Values are
parameters of their statements on every driver, so they are not in `pg_stat_activity`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import psycopg
import sqlalchemy as sa
from psycopg.rows import tuple_row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile.errors import ConfigurationError, database_errors, remember_role
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import (
    PARAMETER,
    SCOPE,
    Function,
    Transaction,
    array_literal,
    as_driver_takes_it,
    in_schema,
    lacks_tables,
    look_elsewhere,
)

UTF8 = ("UTF8", "UNICODE")
"""Its names in Postgres."""


class Statement(NamedTuple):
    """A statement with `{schema}` for the quoted schema and `:name` for a parameter, and its parameters."""

    text: str
    parameters: Mapping[str, Any] = {}


_SAVEPOINT = Statement("SAVEPOINT mailglass_reconcile")
_RELEASE = Statement("RELEASE SAVEPOINT mailglass_reconcile")
_UNDO = Statement("ROLLBACK TO SAVEPOINT mailglass_reconcile")

_SET = """
SELECT pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))
  FROM unnest(CAST(CAST(:names AS text) AS text[]), CAST(CAST(:values AS text) AS text[])) AS s (name, value)
"""

# The caller's values are read before ours are made: a row of the first is what the second is computed for.
_MAKE_SETTINGS = """
WITH callers AS MATERIALIZED (
  SELECT pg_catalog.array_agg(pg_catalog.current_setting(s.name) ORDER BY s.place) AS settings
    FROM unnest(CAST(CAST(:names AS text) AS text[])) WITH ORDINALITY AS s (name, place)
)
SELECT settings,
       (SELECT pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))
          FROM unnest(CAST(CAST(:names AS text) AS text[]), CAST(CAST(:values AS text) AS text[])) AS s (name, value))
  FROM callers
"""
_NAMES = array_literal(SCOPE)
_OURS = Statement(_MAKE_SETTINGS, {"names": _NAMES, "values": array_literal(SCOPE.values())})


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
            self._callers_settings = array_literal(self._in_savepoint(_OURS)[0][0])
        return super().execute(statement, parameters)

    def call(self, function: Function, parameters: Mapping[str, str | None], *, last: bool = False) -> Sequence[Any]:
        """Return the rows of a function, which has our settings by itself."""
        statement = Statement(function.call, parameters)
        return self._in_savepoint(statement, last=last and not self._callers_settings)

    def undo(self) -> None:
        """Undo what the block did, and the settings with it."""
        if self._is_open:
            self._send(_UNDO)
            self._callers_settings = ""

    def leave(self) -> None:
        """End the savepoint, and restore the caller's settings."""
        if self._is_open:
            callers = Statement(_SET, {"names": _NAMES, "values": self._callers_settings})
            self._send(_RELEASE, *((callers,) if self._callers_settings else ()))
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
        if not self.connection.in_transaction():
            self.connection.begin()
        return _send(self.connection, self.settings, statements)


@contextmanager
def borrowed(given: object, settings: Settings) -> Iterator[Transaction]:
    """Use a caller's transaction in this package's scope, under a savepoint, and restore its settings at the end.

    *given* is a SQLAlchemy Connection or Session in a transaction. If the block raises, what the block did is undone,
    and the caller's transaction continues.
    """
    with database_errors():
        connection = given if isinstance(given, sa.Connection) else engines.connection_of_session(given)
        _require_usable(connection)
        tx = Borrowed(connection, settings)
        try:
            yield tx
        except BaseException as error:
            if isinstance(error, DBAPIError):
                remember_role(error, connection)
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


def _require_usable(connection: sa.Connection) -> None:
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise ConfigurationError(
            "the connection's isolation_level is AUTOCOMMIT, so its statements could not be kept or undone together:"
            " pass one in a transaction, such as that of `with engine.begin() as connection`"
        )
    encoding = _encoding(connection)
    # PgBouncer passes on what the client wrote, of which Postgres reads letters and digits.
    if "".join(filter(str.isalnum, encoding)).upper() not in UTF8:
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
    return str(driver.encoding) if connection.dialect.driver == "psycopg2" and driver.encoding != "UTF8" else of_server


def _send(connection: sa.Connection, settings: Settings, statements: Sequence[Statement]) -> Sequence[Any]:
    """Execute statements, and return the rows of the one that has some.

    With the drivers that are used most, past SQLAlchemy, whose own work costs as much.
    """
    if _is_sent_directly(connection):
        by_driver = _by_asyncpg if connection.dialect.is_async else _by_psycopg
        return by_driver(connection, settings.database_schema, statements)
    results = [Transaction(connection, settings).execute(*statement) for statement in statements]
    return next((result.all() for result in results if result.returns_rows), [])


def _is_sent_directly(connection: sa.Connection) -> bool:
    driver = connection.dialect.driver
    return driver == "asyncpg" or (driver == "psycopg" and not connection.dialect.is_async)


def _by_psycopg(connection: sa.Connection, schema: str, statements: Sequence[Statement]) -> list[Any]:
    """Execute statements in one round trip; a libpq without pipelines sends them one by one.

    They are never prepared, because PgBouncer may not keep that.
    """
    driver: Any = connection.connection.dbapi_connection
    together = len(statements) > 1 and psycopg.Pipeline.is_supported()
    texts = [as_driver_takes_it(statement.text, schema) for statement in statements]
    cursors = []
    failure: psycopg.Error | None = None
    try:
        with driver.pipeline() if together else nullcontext():
            try:
                for text, (_, parameters) in zip(texts, statements, strict=True):
                    # Not the connection's own cursors: Django's put values into the text.
                    cursor = psycopg.Cursor(driver, row_factory=tuple_row)
                    cursors.append(cursor.execute(text, parameters, prepare=False))
            except psycopg.Error as error:  # psycopg would log what becomes of the later statements
                failure = error
    except psycopg.Error as error:
        failure = failure or error
    # Of a pipeline that was broken off, psycopg may raise what became of the later statements.
    while isinstance(failure, psycopg.errors.PipelineAborted) and isinstance(failure.__context__, psycopg.Error):
        failure = failure.__context__
    if failure is not None:
        raise _as_sqlalchemys(connection, "; ".join(texts), failure, is_lost=bool(driver.closed))
    return next((cursor.fetchall() for cursor in cursors if cursor.description), [])


def _by_asyncpg(connection: sa.Connection, schema: str, statements: Sequence[Statement]) -> list[Any]:
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    if not (adapted.autocommit or driver.is_in_transaction()):
        # SQLAlchemy begins a transaction with what it sends itself, which is the savepoint here.
        connection.exec_driver_sql(statements[0].text)
        statements = statements[1:]
    found: list[Any] = []
    for statement in statements:
        text, values = _numbered(statement, schema)
        try:
            found += adapted.run_async(lambda driver: _fetched(driver, text, values))  # noqa: B023 - called at once
        except SQLAlchemyError:
            raise
        except Exception as error:  # asyncpg's have no class in common
            raise _as_sqlalchemys(connection, text, error, is_lost=driver.is_closed()) from None
    return found


async def _fetched(driver: Any, text: str, values: Sequence[Any]) -> Sequence[Any]:
    rows: Sequence[Any] = await driver.fetch(text, *values)
    return rows


def _numbered(statement: Statement, schema: str) -> tuple[str, list[Any]]:
    """Return a statement as asyncpg takes it, with `$1` for its first parameter, and the values in that order."""
    names = list(dict.fromkeys(PARAMETER.findall(statement.text)))
    text = PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", statement.text)
    return in_schema(text, schema), [statement.parameters[name] for name in names]


def _as_sqlalchemys(connection: sa.Connection, text: str, error: Exception, *, is_lost: bool) -> BaseException:
    if is_lost:
        with suppress(DBAPIError):  # SQLAlchemy notices the loss: its pool has others of that server
            connection.exec_driver_sql("SELECT 1")
    return DBAPIError.instance(text, None, error, Exception, hide_parameters=True, connection_invalidated=is_lost)
