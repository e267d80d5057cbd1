"""A migrated database of a test, as the fixture `db` yields it."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

import witness as watching
from database_pool import PooledDatabase
from mailglass_reconcile import runtime
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Database as Handle
from mailglass_reconcile.store.migration import runner
from waiting import wait_until

OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SCHEMA = "SELECT current_schema()"
APPENDED = "SELECT count(*) FROM mailglass_events WHERE type = 'reconciled'"


@dataclass(frozen=True)
class Database:
    """A migrated database of a test."""

    url: str
    settings: Settings
    engine: sa.Engine = field(repr=False)
    witness: watching.Witness = field(repr=False)
    broken: set[str] = field(default_factory=set)
    """Invariants that a test breaks on purpose, such as `I13` where it takes the triggers away."""
    handled: set[tuple[str, str]] = field(default_factory=set)
    """Types of events of which each one that reached a delivery must have a row in the handlers' outbox."""

    pooled: PooledDatabase | None = field(default=None, repr=False)
    """Which of the databases that are kept it is, if it is one."""

    @property
    def sqlalchemy_url(self) -> str:
        """The URL as pages print it, for our programs and SQLAlchemy's `create_engine`."""
        url = sa.make_url(self.url).set(drivername="postgresql+psycopg")
        return url.render_as_string(hide_password=False)

    @property
    def database(self) -> Handle:
        """The database as the package uses it."""
        return Handle(self.engine, self.settings, runtime.get_limits())

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """Begin a transaction that commits at the end of the block; `tx` yields its own."""
        return self.engine.begin()

    def is_current(self) -> bool:
        """Return True if the database is as a migration makes it."""
        if self.pooled and self.pooled.is_unchanged():
            return True
        lacking = runner.find_missing_objects(self.engine, self.settings)
        return not lacking and self.value(SCHEMA) == self.settings.database_schema

    def rows(self, sql: str, **parameters: object) -> Sequence[sa.Row[Any]]:
        """Run one statement in a transaction of its own, in UTC, and return its rows."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
            return connection.execute(sa.text(sql), parameters).all()

    def value(self, sql: str, **parameters: object) -> Any:
        """Return the only value of a statement's only row."""
        return self.rows(sql, **parameters)[0][0]

    def run(self, sql: str, **parameters: object) -> None:
        """Run one statement without a result in a transaction of its own, in UTC."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
            connection.execute(sa.text(sql), parameters)

    def set_default(self, setting: str, value: str | None) -> None:
        """Set the database's default of a setting for later sessions, or reset it."""
        change = f"RESET {setting}" if value is None else f"SET {setting} = '{value}'"
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql(f'ALTER DATABASE "{self.engine.url.database}" {change}')
        self.engine.dispose()

    def wait_until_alone(self) -> None:
        """Wait until every other session has ended, because only then the statistics have its cost."""
        self.engine.dispose()
        wait_until(lambda: self.value(OTHER_SESSIONS) == 0)

    def find_waiting(self) -> list[int]:
        """Return the sessions of this database that wait for a lock; a server may have other databases."""
        return [pid for (pid,) in self.rows(WAITING)]

    def count_links(self) -> int:
        """Return the number of `reconciled` events in the ledger, whoever appended them."""
        return int(self.value(APPENDED))

    def environment(self, redis_url: str | None = None) -> dict[str, str]:
        """Return the environment of a process that uses this database and a Redis, by default that of its settings."""
        redis_url = redis_url or self.settings.redis_url.get_secret_value()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
        return {**inherited, "MAILGLASS_DATABASE_URL": self.sqlalchemy_url, "MAILGLASS_REDIS_URL": redis_url}
