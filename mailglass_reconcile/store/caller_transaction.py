"""A caller's own transaction: a function of the schema is called in it as it is, everything else under a savepoint.

A usual call sends functions of the schema, each one round trip. They have our settings by themselves, and catch errors,
so neither a savepoint nor the caller's settings are touched. The rare ways that need statements of ours begin a
savepoint with the first of them, under our settings, and give the caller's back at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile.errors import ConfigurationError, attach_role, database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import OpenConnection, Transaction, is_schema_error, require_revision
from mailglass_reconcile.store.limits import LIMITS, Limits
from mailglass_reconcile.store.schema.script import SCOPE

UTF8 = ("UTF8", "UNICODE")
"""The names of the encoding in Postgres."""


class CallerTransaction(Transaction):
    """A caller's transaction: functions are called in it, and statements run under a savepoint and our settings."""

    def __init__(self, connection: sa.Connection, settings: Settings, limits: Limits) -> None:
        """Use *connection*, which is in a transaction, on the tables that *settings* name."""
        super().__init__(connection, settings, limits)
        self._savepoint: sa.NestedTransaction | None = None
        self._caller_settings: dict[str, str] = {}

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one statement under our settings, as `Transaction.execute`."""
        self.begin_savepoint()
        return super().execute(statement, parameters)

    def begin_savepoint(self) -> None:
        """Begin the savepoint, and set our settings, unless that is done."""
        if self._savepoint is None:
            self.require_ours()
            self._savepoint = self.connection.begin_nested()
            self._caller_settings = self.exchange(SCOPE)

    def rollback(self) -> None:
        """Roll back to the savepoint, and our settings with it."""
        if self._savepoint is not None:
            self._savepoint.rollback()
            self._savepoint = None

    def release(self) -> None:
        """Restore the caller's settings, and release the savepoint."""
        if self._savepoint is not None:
            self.set(self._caller_settings)
            self._savepoint.commit()
            self._savepoint = None


@contextmanager
def use_caller_transaction(handle: object, settings: Settings, limits: Limits = LIMITS) -> Iterator[Transaction]:
    """Use a caller's transaction.

    *handle* is a SQLAlchemy Connection or Session in a transaction. If the block raises, nothing of it is left, and the
    caller's transaction continues. After errors of the classes 08, 25, 40, 53, 57, 58 and XX outside of a savepoint,
    and if a function or the schema cannot be used, it is aborted.
    """
    with database_errors():
        connection = handle if isinstance(handle, sa.Connection) else engines.session_connection(handle)
        _require_usable(connection)
        tx = CallerTransaction(connection, settings, limits)
        try:
            yield tx
            tx.release()
        except BaseException as error:
            if isinstance(error, DBAPIError):
                attach_role(error, connection)
            with suppress(SQLAlchemyError):  # a connection that is lost has nothing to undo
                tx.rollback()
            if is_schema_error(error):
                _require_revision(connection, settings)
            raise


def _require_revision(connection: sa.Connection, settings: Settings) -> None:
    """Raise the error that names another revision, asked on another connection: the caller's may be aborted."""
    with (
        suppress(SQLAlchemyError, OSError),
        engines.temporary_engine(connection.engine) as engine,
        engine.connect() as separate,
        OpenConnection(separate, settings).reading_catalog() as tx,
    ):
        require_revision(tx)


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
