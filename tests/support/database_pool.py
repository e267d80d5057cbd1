"""A pool of one database: each test of a process gets it without rows, or a new copy if its schema has changed.

A connection to it is kept as well, and is reset between tests.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy.exc import SQLAlchemyError

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import SessionTransaction
from mailglass_reconcile.testing.databases import Databases

_CATALOGS = (
    "pg_event_trigger",
    "pg_index",
    "pg_database WHERE datname = current_database()",
    "pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
)
"""Catalogs whose changes fire no event trigger, but change the count or the newest transaction id of their rows.

Tests update `pg_index` directly.
"""

# Event triggers record in `changes` what is created, altered, granted or dropped, except temporary tables. `catalog`
# returns another text when anything but rows has changed; the rows that a migration leaves belong to it, too.
# Unless it has changed, `forget` takes away all other rows, with their pages and statistics: what a sweep does depends
# on both. The ledger's guards do not run in a session that replays what another one did; it plans every statement again
# after each change of that setting.
_INSTALL = """
CREATE FUNCTION witness.catalog() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  migrated text;
BEGIN
  EXECUTE (SELECT format('SELECT string_agg(t::text, '';'') FROM %s AS t', oid::regclass)
             FROM pg_class WHERE relkind = 'r' AND relname = 'mailglass_reconcile_version') INTO migrated;
  RETURN concat_ws('|', migrated, (SELECT count(*) FROM witness.changes), {changes});
END $$;
CREATE FUNCTION witness.forget(catalog text) RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '200ms' AS $$
DECLARE
  used text;
BEGIN
  IF catalog IS NOT NULL THEN
    IF witness.catalog() <> catalog THEN
      RETURN false;
    END IF;
  END IF;
  SELECT string_agg(oid::regclass::text, ', ') INTO used
    FROM pg_class
   WHERE relkind = 'r' AND oid >= 16384 AND relname <> 'mailglass_reconcile_version'
     AND (pg_relation_size(oid) > 0 OR reltuples >= 0);
  IF used IS NOT NULL THEN
    SET LOCAL session_replication_role = replica;
    EXECUTE format('TRUNCATE %s RESTART IDENTITY', used);
    DELETE FROM pg_statistic WHERE starelid >= 16384;
    PERFORM pg_stat_reset();
  END IF;
  RETURN true;
END $$;
CREATE TABLE witness.changes (tag text);
CREATE FUNCTION witness.changed() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  IF TG_EVENT = 'sql_drop' THEN
    INSERT INTO witness.changes
    SELECT TG_TAG WHERE EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary);
  ELSE
    INSERT INTO witness.changes
    SELECT TG_TAG WHERE EXISTS (SELECT FROM pg_event_trigger_ddl_commands()
                                 WHERE schema_name IS DISTINCT FROM 'pg_temp');
  END IF;
END $$;
CREATE EVENT TRIGGER witness_changed ON ddl_command_end EXECUTE FUNCTION witness.changed();
CREATE EVENT TRIGGER witness_dropped ON sql_drop EXECUTE FUNCTION witness.changed();
ALTER EVENT TRIGGER witness_changed ENABLE ALWAYS;
ALTER EVENT TRIGGER witness_dropped ENABLE ALWAYS;
""".replace(
    "{changes}",
    ", ".join(f"(SELECT concat(count(*), ' ', max(xmin::text::bigint)) FROM {catalog})" for catalog in _CATALOGS),  # noqa: S608
)

# DISCARD ALL without DISCARD PLANS: keeping the plans is most of what a kept connection saves.
_RESET = """
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all();
DISCARD SEQUENCES; DISCARD TEMP
"""


def install(engine: sa.Engine) -> None:
    """Install what a pool needs in a database with a witness, so that its copies can be pooled."""
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(_INSTALL)


@dataclass
class PooledDatabase:
    """The database of one test.

    Attributes:
        url: Its URL, password included.
        settings: Its settings.
        engine: An engine with the test's own events and options; it keeps one connection between uses.
        catalog: The value of `witness.catalog()` when the database was new; empty once it differs.
        is_compared: Whether the checker of the invariants has compared the catalog, and nothing ran after it.
    """

    url: str
    settings: Settings
    engine: sa.Engine = field(repr=False)
    catalog: str = ""
    is_compared: bool = False

    def is_unchanged(self) -> bool:
        """Return True if only rows have changed since the database was created; reset the kept session."""
        try:
            with session(self.engine) as driver:
                return self.is_unchanged_in(driver)
        except SQLAlchemyError:
            return False

    def is_unchanged_in(self, driver: psycopg.Connection) -> bool:
        """Return True if only rows have changed, like `is_unchanged`, but on the kept session, which is open."""
        if self.catalog and _reset_and_run(driver, "SELECT witness.catalog()") != self.catalog:
            self.catalog = ""
        return bool(self.catalog)

    def reset(self) -> bool:
        """Delete all rows if nothing else has changed; return True if they were deleted."""
        if not self.catalog:
            return False
        try:
            with session(self.engine) as driver:
                catalog = "NULL" if self.is_compared else f"'{self.catalog}'"
                return _reset_and_run(driver, f"SELECT witness.forget({catalog})") is True
        except SQLAlchemyError:
            return False


@contextmanager
def session(engine: sa.Engine) -> Iterator[psycopg.Connection]:
    """Yield a connection of psycopg in autocommit mode, so that several statements can be one round trip."""
    with engine.connect() as connection:
        driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        driver.autocommit = True
        try:
            yield driver
        finally:
            if not driver.closed:
                driver.autocommit = False


def _reset_and_run(driver: psycopg.Connection, statement: str) -> Any:
    """Reset the session, run a statement and return its value; return None after an error."""
    try:
        driver.cursor_factory = psycopg.Cursor
        cursor = driver.execute(f"{_RESET}; {statement}")
        while cursor.nextset():
            pass
        [value] = cursor.fetchone() or (None,)
    except psycopg.Error:  # a lock that a test has left, or a dropped function
        return None
    return value


@dataclass(frozen=True)
class Uncommitted:
    """A transaction that is rolled back, on a database without rows: the fixture `tx`, with the methods of `db`."""

    connection: sa.Connection
    """The connection for the code under test, in its transaction, in UTC."""

    settings: Settings
    broken: set[str] = field(default_factory=set)
    handled: set[tuple[str, str]] = field(default_factory=set)

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Yield the connection, where `db` begins a transaction of its own."""
        yield self.connection

    def rows(self, sql: str, **parameters: object) -> Sequence[sa.Row[Any]]:
        """Run one statement that returns rows, and return them."""
        return self.connection.execute(sa.text(sql), parameters).all()

    def value(self, sql: str, **parameters: object) -> Any:
        """Return the only value of the only row of one statement."""
        return self.rows(sql, **parameters)[0][0]

    def run(self, sql: str, **parameters: object) -> None:
        """Run one statement that returns nothing."""
        self.connection.execute(sa.text(sql), parameters)


def keep_one_connection(settings: Settings) -> sa.Engine:
    """Return an engine that keeps one connection between uses, and opens others as without a pool."""
    engine = engines.create_engine(settings, pool_size=1)
    engine.pool._max_overflow = -1  # type: ignore[attr-defined]
    engine.dialect.do_ping = _ping  # type: ignore[method-assign]
    return engine


def _ping(driver: psycopg.Connection) -> bool:  # type: ignore[override]
    """Return True if a connection is alive; SQLAlchemy's own ping takes several times as long."""
    return driver.pgconn.exec_(b"").status == ExecStatus.EMPTY_QUERY


class DatabasePool:
    """A pool of one copy of a template, which is reused as long as only rows change."""

    def __init__(self, databases: Databases, template: str, settings_of: Callable[[str], Settings]) -> None:
        """Copy *template* when a test first needs it; *settings_of* returns the settings for a URL."""
        self._databases, self._template, self._settings_of = databases, template, settings_of
        self._name = ""
        self._pooled: PooledDatabase | None = None

    @contextmanager
    def acquire(self) -> Iterator[PooledDatabase]:
        """Yield the database without rows while the block runs."""
        pooled = self._next()
        try:
            yield pooled
        finally:
            if not pooled.reset():
                self.close()

    @contextmanager
    def transaction(self) -> Iterator[Uncommitted]:
        """Yield a transaction on the database, which is rolled back at the end of the block."""
        pooled = self._next()
        with pooled.engine.connect() as connection:
            transaction = connection.begin()
            connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
            driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
            try:
                yield Uncommitted(connection, pooled.settings)
            finally:
                has_ended = driver.info.transaction_status == TransactionStatus.IDLE
                transaction.rollback()
        if has_ended:
            self.close()
            raise AssertionError("the test has ended its transaction: it needs the fixture `db`")

    def close(self) -> None:
        """Drop the database, if there is one."""
        if self._pooled is not None:
            self._pooled.engine.dispose()
            self._databases.drop(self._name)
            self._pooled = None

    def _next(self) -> PooledDatabase:
        """Return the database with an engine of its own for the next test."""
        pooled = self._pooled = self._pooled or self._create()
        return PooledDatabase(pooled.url, pooled.settings, pooled.engine.execution_options(), pooled.catalog)

    def _create(self) -> PooledDatabase:
        self._name = f"mgtest_{uuid.uuid4().hex[:12]}"
        settings = self._settings_of(self._databases.create(self._name, self._template))
        assert settings.database_url is not None
        engine = keep_one_connection(settings)
        with engine.connect() as connection:
            catalog = connection.exec_driver_sql("SELECT witness.catalog()").scalar_one()
            # Once in a process: a test that counts statements must not depend on the tests before it.
            SessionTransaction(connection, settings).require_ours()
        return PooledDatabase(settings.database_url.get_secret_value(), settings, engine, catalog)
