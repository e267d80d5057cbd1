"""Real servers for the session, and a database of its own for each test that commits."""

import gc
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import invariants
import mailglass_reconcile
import witness as watching
from lending import Lender, Lent, Uncommitted
from mailglass_reconcile import projector
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database as Handle
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing.databases import Databases

pytest_plugins = [
    "mailglass_reconcile.testing.plugin",
    "shapes",
    "installation",
    "handling",
    "observing",
    "django_project",
]

OTHERS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
SCHEMA = "SELECT current_schema()"
APPENDED = "SELECT count(*) FROM mailglass_events WHERE type = 'reconciled'"


def pytest_collection_finish() -> None:
    """Leave the modules and the tests, which stay until the end, out of each later garbage collection."""
    gc.freeze()


@dataclass(frozen=True)
class Database:
    """A migrated database of a test's own."""

    url: str
    settings: Settings
    engine: sa.Engine = field(repr=False)
    witness: watching.Witness = field(repr=False)
    broken: set[str] = field(default_factory=set)
    """Invariants that a test breaks on purpose, such as `I13` where it takes the triggers away."""
    hooked: set[str] = field(default_factory=set)
    """Types of events of which each one that reached a delivery must have a row in the handlers' outbox."""

    lent: Lent | None = field(default=None, repr=False)
    """Which of the databases that are kept it is, if it is one."""

    @property
    def database(self) -> Handle:
        """The same as the package uses it."""
        return Handle(self.engine, self.settings)

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """Begin a transaction that is committed at the end of the block; `tx` yields its own."""
        return self.engine.begin()

    def is_current(self) -> bool:
        """Whether it is as a migration makes it."""
        if self.lent and self.lent.is_as_made():
            return True
        return runner.is_current(self.engine, self.settings) and self.value(SCHEMA) == self.settings.database_schema

    def rows(self, sql: str, **parameters: object) -> Sequence[sa.Row[Any]]:
        """Run one statement that returns rows, in a transaction of its own, in UTC, and return them."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
            return connection.execute(sa.text(sql), parameters).all()

    def value(self, sql: str, **parameters: object) -> Any:
        """Return the only value of the only row of one statement."""
        return self.rows(sql, **parameters)[0][0]

    def run(self, sql: str, **parameters: object) -> None:
        """Run one statement that returns nothing, in a transaction of its own, in UTC."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
            connection.execute(sa.text(sql), parameters)

    def by_default(self, setting: str, value: str | None) -> None:
        """Give the database a default of its own for a setting, or none; sessions that begin later have it."""
        change = f"RESET {setting}" if value is None else f"SET {setting} = '{value}'"
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql(f'ALTER DATABASE "{self.engine.url.database}" {change}')
        self.engine.dispose()

    def wait_until_alone(self) -> None:
        """Wait until every other session has ended: only then its cost is in the statistics."""
        self.engine.dispose()
        wait_until(lambda: self.value(OTHERS) == 0)

    def appended(self) -> int:
        """Return how many `reconciled` events the ledger holds, whoever appended them."""
        return int(self.value(APPENDED))

    def environment(self, redis_url: str) -> dict[str, str]:
        """Return the environment of a process that is to use this database."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
        return {**others, "MAILGLASS_DATABASE_URL": self.url, "MAILGLASS_REDIS_URL": redis_url}


@pytest.fixture(scope="session")
def redis_url(mailglass_redis_url: str) -> str:
    """A Redis-protocol server: one that is given, or one of this process's own, because channels have no databases."""
    if not os.environ.get("MAILGLASS_TEST_REDIS_URL"):
        with redis.Redis.from_url(mailglass_redis_url) as client:
            # A witness reads at the end of its test; by default a server hangs up on a reader so far behind.
            client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    return mailglass_redis_url


@pytest.fixture(scope="session")
def admin(mailglass_databases: Databases) -> sa.Engine:
    """An engine that creates and drops databases."""
    return mailglass_databases.engine


@pytest.fixture(scope="session")
def make_database(mailglass_databases: Databases) -> Callable[..., str]:
    """Create databases, as copies of a template where one is named."""
    return mailglass_databases.create


@pytest.fixture(scope="session")
def drop_database(mailglass_databases: Databases) -> Callable[[str], None]:
    """Drop a database, even if somebody is still connected."""
    return mailglass_databases.drop


@pytest.fixture(scope="session")
def template(mailglass_databases: Databases) -> Iterator[str]:
    """The name of a migrated database, to copy."""
    with mailglass_databases.template() as name:
        yield name


@pytest.fixture(scope="session")
def mailglass_template(
    template: str, make_database: Callable[..., str], drop_database: Callable[[str], None]
) -> Iterator[str]:
    """The name of another one, which writes down what happens to its rows: those of tests are copies of it."""
    name = f"mgtest_witnessed_{uuid.uuid4().hex[:12]}"
    watching.install(engines.create_engine(Settings(database_url=make_database(name, template))))
    yield name
    drop_database(name)


@pytest.fixture(scope="session")
def lender(mailglass_databases: Databases, mailglass_template: str, redis_url: str) -> Iterator[Lender]:
    """Lends one database to one test after the other."""
    lender = Lender(
        mailglass_databases, mailglass_template, lambda url: Settings(database_url=url, redis_url=redis_url)
    )
    yield lender
    lender.close()


@pytest.fixture
def mailglass_database(lender: Lender, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lent]:
    """A migrated database without rows, which the environment names; the test has it for itself.

    It is the plugin's fixture, except that the next test gets the same database if only rows have changed.
    """
    with lender.lend() as lent:
        monkeypatch.setenv("MAILGLASS_DATABASE_URL", lent.url)
        monkeypatch.setenv("MAILGLASS_REDIS_URL", lent.settings.redis_url.get_secret_value())
        mailglass_reconcile.configure()
        yield lent
        mailglass_reconcile.configure()


@pytest.fixture
def empty_database_url(make_database: Callable[..., str], drop_database: Callable[[str], None]) -> Iterator[str]:
    """The URL of a database without any table."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    yield make_database(name)
    drop_database(name)


@pytest.fixture
def tx(lender: Lender) -> Iterator[Uncommitted]:
    """A transaction that is rolled back, on a migrated database without rows, for code that takes a connection.

    It is what a test takes unless it needs a commit, two sessions or a process: those take `db`.
    """
    with lender.transaction() as uncommitted:
        mailglass_reconcile.configure(engine=uncommitted.connection.engine, settings=uncommitted.settings)
        yield uncommitted
        invariants.check_uncommitted(uncommitted)
    mailglass_reconcile.configure()


@pytest.fixture
def db(mailglass_database: Lent, redis_url: str) -> Iterator[Database]:
    """A migrated database for a test that commits, configured to be used, whose invariants are checked at the end."""
    engine, settings = mailglass_database.engine, mailglass_database.settings
    mailglass_reconcile.configure(engine=engine, settings=settings)
    with watching.watched(engine, redis_url) as witness:
        projector._LeftOut.next_look = math.inf  # it would cost statements, which some tests count
        made = Database(mailglass_database.url, settings, engine, witness, lent=mailglass_database)
        yield made
        invariants.check(made, witness, holding=invariants.ALL - made.broken)


@pytest.fixture
def subscriber(redis_url: str) -> Iterator[redis.client.PubSub]:
    """A subscriber to every channel of ours, already confirmed."""
    client = redis.Redis.from_url(redis_url)
    with client.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:events:*")
        wait_until(lambda: (pubsub.get_message(timeout=0.1) or {}).get("type") == "psubscribe")
        yield pubsub


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until *condition* holds, and fail where it does not within *seconds* of a machine with nothing else to do.

    They are counted in looks, of which there are a hundred in a second: on a busy machine each takes longer.
    """
    pause, latest = time.sleep, time.monotonic() + 10 * seconds
    for _ in range(round(seconds * 100)):
        if condition():
            return
        assert time.monotonic() < latest, f"not within {10 * seconds} s"
        pause(0.01)
    assert condition(), f"not within {seconds} s"
