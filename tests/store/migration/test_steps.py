"""Migrations of a busy database, or of one with short timeouts."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from catalog import Installation, installation
from faults import servers
from history import DELIVERY, ORPHAN, insert_history, new_id, write_until
from marking import nightly_unless
from shapes import SCHEMAS, make_mailglass_tables
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def slow_vacuum() -> Iterator[Installation]:
    """A Mailglass on a server of this test, whose autovacuum of the ledger takes minutes."""
    with servers.postgres() as server:
        database = make_mailglass_tables(server.url, "2.x")
        insert_history(database)
        database.run(
            """INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata)
               SELECT gen_random_uuid(), 't', 'opened', now(), jsonb_build_object('a', repeat('x', 1500))
                 FROM generate_series(1, 3000);
               ALTER TABLE mailglass_events SET (autovacuum_vacuum_insert_threshold = 1,
                 autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,
                 autovacuum_vacuum_cost_limit = 1)"""
        )
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ALTER SYSTEM SET autovacuum_naptime = '1s'")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        yield database


AUTOVACUUM = """
SELECT a.pid FROM pg_stat_activity AS a JOIN pg_locks AS l ON l.pid = a.pid
 WHERE a.backend_type = 'autovacuum worker' AND l.relation = 'mailglass_events'::regclass
   AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted
"""


def test_a_migration_interrupts_an_autovacuum_and_no_writer_fails(slow_vacuum):
    """Postgres cancels it for a session that waits a second; writers give up after half a second, and need not."""
    wait_until(lambda: slow_vacuum.values(AUTOVACUUM), PATIENCE)
    stop, written_lines = threading.Event(), []
    with ThreadPoolExecutor() as pool:
        writer = pool.submit(write_until, stop, slow_vacuum, written_lines)
        try:
            slow_vacuum.migrate()
        finally:
            stop.set()
        writer.result(PATIENCE)
    assert slow_vacuum.is_current()
    assert len(written_lines) > 1


@pytest.mark.parametrize(
    "timeout",
    nightly_unless(
        "statement_timeout".__eq__,
        ["transaction_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "statement_timeout"],
    ),
)
def test_a_session_timeout_of_the_database_does_not_fail_a_migration(unmigrated, shape, timeout):
    """Sessions that wait while others work are not affected."""
    database = unmigrated
    insert_history(database)
    if not database.values("SELECT 1 FROM pg_settings WHERE name = :name", name=timeout):
        pytest.skip(f"this server has no {timeout}")
    name = database.engine.url.database
    database.run(f"ALTER DATABASE {name} SET {timeout} = '300ms'")
    second_installation = installation(database.settings.database_url.get_secret_value(), SCHEMAS[shape])

    def tell(line: str) -> None:
        if not line.startswith("fill"):
            return
        with psycopg.connect(database.settings.database_url.get_secret_value(), autocommit=True) as connection:
            for name in ("statement_timeout", timeout):
                connection.execute(f"SET {name} = 0")
            connection.execute("SELECT pg_sleep(0.4)")

    second_installation.migrate(tell)
    assert second_installation.is_current()


def test_an_index_is_built_although_the_role_has_short_timeouts(unmigrated):
    """It waits for a writer beyond the lock and statement timeouts of the role."""
    database = unmigrated
    name = database.engine.url.database
    for timeout in ("lock_timeout", "statement_timeout"):
        database.run(f"ALTER DATABASE {name} SET {timeout} = '200ms'")
    building = (
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND state = 'active'"
        " AND wait_event_type = 'Lock' AND datname = current_database() AND now() - query_start > interval '500 ms'"
    )
    with ThreadPoolExecutor() as pool:
        with database.writing(DELIVERY):
            running = pool.submit(database.migrate)
            wait_until(lambda: running.done() or database.values(building))
        running.result(PATIENCE)
    assert database.is_current()


INSERTING = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, needs_reconciliation)
VALUES (gen_random_uuid(), 'acme', {delivery}, '{type}', now(), '{key}', {orphan})
"""


@pytest.mark.parametrize("kind", ["orphan", "reconciled"])
def test_writers_in_serializable_do_not_fail_because_of_our_triggers(unmigrated, kind):
    """Pairs of transactions that insert in turn all commit, as they do without our triggers."""
    database = unmigrated
    database.migrate()
    url = database.settings.database_url.get_secret_value()
    orphans = [new_id() for _ in range(400)]
    database.run("; ".join(ORPHAN.format(id=id_, age="1 minute") for id_ in orphans))
    failures = 0
    for first in range(0, 80, 4):
        with psycopg.connect(url) as first_writer, psycopg.connect(url) as second_writer:
            for number, connection in enumerate((first_writer, second_writer, first_writer, second_writer)):
                if number < 2:
                    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
                id_ = orphans[first + number]
                values = {
                    "orphan": {"delivery": "NULL", "type": "opened", "key": f"postmark:{id_}", "orphan": "true"},
                    "reconciled": {
                        "delivery": "gen_random_uuid()",
                        "type": "reconciled",
                        "key": f"reconciled:{id_}",
                        "orphan": "false",
                    },
                }
                connection.execute(INSERTING.format(**values[kind]))
            for connection in (first_writer, second_writer):
                try:
                    connection.commit()
                except psycopg.errors.SerializationFailure:
                    failures += 1
    assert failures == 0
