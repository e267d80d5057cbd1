"""Real servers for the session, and a database of its own for each test that commits."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

import invariants
import mailglass_reconcile
import witness as watching
from database import Database
from database_pool import DatabasePool, PooledDatabase, Uncommitted
from faults.redis_servers import Valkey
from mailglass_reconcile import runtime
from mailglass_reconcile.receiver import refusals
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.limits import LIMITS, Limits
from mailglass_reconcile.testing.databases import Databases
from waiting import settle, wait_until


@pytest.fixture(scope="session")
def redis_url(mailglass_redis_url: str) -> str:
    """The URL of a Redis-protocol server: a configured one, or one per process, because channels have no databases."""
    if not os.environ.get("MAILGLASS_TEST_REDIS_URL"):
        with redis.Redis.from_url(mailglass_redis_url) as client:
            # A witness reads at the end of its test; by default a server disconnects a reader so far behind.
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
    """Drop a database, even if sessions are still connected."""
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
    """The name of a migrated database that also records changes of its rows; the databases of tests are copies."""
    name = f"mgtest_witnessed_{uuid.uuid4().hex[:12]}"
    watching.install(engines.create_engine(Settings(database_url=make_database(name, template))))
    yield name
    drop_database(name)


@pytest.fixture(scope="session")
def database_pool(mailglass_databases: Databases, mailglass_template: str, redis_url: str) -> Iterator[DatabasePool]:
    """The pool from which each test gets its database."""
    pool = DatabasePool(
        mailglass_databases, mailglass_template, lambda url: Settings(database_url=url, redis_url=redis_url)
    )
    yield pool
    pool.close()


@pytest.fixture
def mailglass_database(database_pool: DatabasePool, monkeypatch: pytest.MonkeyPatch) -> Iterator[PooledDatabase]:
    """A migrated database without rows, which the environment names; the test has it for itself.

    It is the plugin's fixture, except that the next test gets the same database if only rows have changed.
    """
    with database_pool.acquire() as pooled:
        monkeypatch.setenv("MAILGLASS_DATABASE_URL", pooled.url)
        monkeypatch.setenv("MAILGLASS_REDIS_URL", pooled.settings.redis_url.get_secret_value())
        mailglass_reconcile.configure()
        yield pooled
        mailglass_reconcile.configure()


@pytest.fixture
def set_limits() -> Iterator[Callable[..., None]]:
    """A function that changes limits of this process's work on its database, by name."""
    yield lambda **limits: runtime.set_limits(Limits(**limits))
    runtime.set_limits(LIMITS)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of the test's own, which the test may stop, pause or fill."""
    server = Valkey(tmp_path / "valkey")
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _reset_log_throttle() -> None:
    """Forget what was logged, so that messages that appear once a minute appear in each test."""
    failures._throttle = LogThrottle()
    refusals._throttle = LogThrottle()


@pytest.fixture
def empty_database_url(make_database: Callable[..., str], drop_database: Callable[[str], None]) -> Iterator[str]:
    """The URL of a database without any table."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    yield make_database(name)
    drop_database(name)


@pytest.fixture
def tx(database_pool: DatabasePool) -> Iterator[Uncommitted]:
    """A transaction that is rolled back, on a migrated database without rows, for code that takes a connection.

    It is what a test takes unless it needs a commit, two sessions or a process: those take `db`.
    """
    with database_pool.transaction() as uncommitted:
        mailglass_reconcile.configure(engine=uncommitted.connection.engine, settings=uncommitted.settings)
        yield uncommitted
        invariants.check_uncommitted(uncommitted)
    mailglass_reconcile.configure()


@pytest.fixture
def db(mailglass_database: PooledDatabase, redis_url: str) -> Iterator[Database]:
    """A migrated database for a test that commits, configured to be used, whose invariants are checked at the end."""
    engine, settings = mailglass_database.engine, mailglass_database.settings
    mailglass_reconcile.configure(engine=engine, settings=settings)
    with watching.watched(engine, redis_url) as witness:
        database = Database(mailglass_database.url, settings, engine, witness, pooled=mailglass_database)
        yield database
        settle()
        invariants.check(database, witness, holding=invariants.ALL - database.broken)
        mailglass_database.is_compared = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Tear the fixtures of a test that has passed down at once, so that what the checker finds fails the test."""
    yield
    if {"db", "tx"}.intersection(getattr(item, "fixturenames", ())):
        item.session._setupstate.teardown_exact(item.parent)  # type: ignore[arg-type]


@pytest.fixture
def subscriber(redis_url: str) -> Iterator[redis.client.PubSub]:
    """A subscriber to all of our channels, already confirmed."""
    client = redis.Redis.from_url(redis_url)
    with client.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:events:*")
        wait_until(lambda: (pubsub.get_message(timeout=0.1) or {}).get("type") == "psubscribe")
        yield pubsub
