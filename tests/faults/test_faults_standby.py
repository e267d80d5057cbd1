"""A COMMIT that waits for a synchronous standby when its connection is lost: its result is awaited."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

import factories
import mailglass_reconcile
from database import APPENDED
from faults import proxy, servers
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow]

# The sweep's COMMIT only: an autovacuum's COMMIT waits too, and may do so while the sweep still reads.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'"


class Primary:
    """A server of this test behind a proxy, whose standby may never come."""

    def __init__(self, url: str, through: proxy.FaultyProxy) -> None:
        """Use the server at *url* behind the proxy *through*."""
        self.through = through
        self.engine = sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )

    def value(self, sql: str) -> int:
        """Return one number."""
        with self.engine.connect() as connection:
            return int(connection.exec_driver_sql(sql).scalar_one())

    def wait_for_standby(self, name: str) -> None:
        """Make each COMMIT that writes wait for the standby *name*, or for none if it is empty."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.value(f"SELECT (current_setting('synchronous_standby_names') = '{name}')::int"))


@pytest.fixture
def primary(redis_url: str) -> Iterator[Primary]:
    """A migrated primary, and the package configured to use it through the proxy."""
    with servers.postgres() as server, proxy.postgres_proxy(server.url) as (through, url):
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(redis_url))
        runner.migrate(engines.create_engine(settings), settings, lambda line: None)
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        yield Primary(server.url, through)
        mailglass_reconcile.configure()


def insert_keyed_orphans(primary: Primary) -> None:
    """Insert three orphans, store their keys by a sweep, and insert their deliveries."""
    orphans = [factories.orphan_row(factories.postmark(f"m-{number}")) for number in range(3)]
    factories.insert(primary, events=orphans)
    assert mailglass_reconcile.reconcile().unmatched == 3
    factories.insert(primary, deliveries=[factories.delivery_row(f"m-{number}") for number in range(3)])


def test_a_commit_whose_answer_is_lost_counts_as_held(primary: Primary) -> None:
    """It waits for a standby; the retry finds its orphans locked and does not wait for them."""
    insert_keyed_orphans(primary)
    primary.wait_for_standby("nobody")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(mailglass_reconcile.reconcile)
        wait_until(lambda: primary.value(WAITING))
        primary.through.drop()
        result = running.result(200)
    assert (result.status, result.scanned, result.linked, result.skipped_held) == ("ok", 3, 0, 3)
    primary.wait_for_standby("")
    wait_until(lambda: primary.value(APPENDED) == 3)
    assert mailglass_reconcile.reconcile().scanned == 0
