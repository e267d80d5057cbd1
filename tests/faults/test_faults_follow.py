"""Faults of `follow`: Postgres and Redis restarted; nothing is lost or doubled."""

import os
from collections.abc import Iterator

import pytest

import factories
from commands import count_linked, follow, sweeps
from database import APPENDED, Database
from faults import servers
from faults.redis_servers import PASSWORD, needs_debians_redis, server
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.schema.revision import VERSION
from mailglass_reconcile.testing.servers import free_port
from processes import Process
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow]

IN_THE_FUTURE = -240
"""An arrival so far ahead of the database's clock that every recent sweep of the next minutes looks at it."""


@pytest.fixture(scope="module")
def own_server() -> Iterator[servers.Postgres]:
    """A PostgreSQL that may be stopped."""
    with servers.migrated_postgres() as server:
        yield server


LINKED_TWICE = """
SELECT count(*) FROM (SELECT metadata ->> 'reconciled_from_event_id' FROM mailglass_events WHERE type = 'reconciled'
                       GROUP BY 1 HAVING count(*) > 1) AS twice
"""


def wait_for_log(process: Process, words: str, times: int = 1) -> None:
    """Wait until stderr has these words so many times."""
    process.wait_for(lambda: process.stderr.count(words) == times, 30)


def link_one_more(db: servers.PlainDatabase, process: Process, expected: int) -> None:
    """Insert one more pair, and wait until it is linked."""
    factories.insert_pairs(db, 1, age_seconds=IN_THE_FUTURE)
    wait_until(lambda: count_linked(process) == expected)


@needs_debians_redis
def test_follow_outlives_restarts_of_postgres_and_of_redis_and_says_so_in_a_line_each(
    own_server: servers.Postgres,
) -> None:
    """One line says that it was lost, one that it is back; every orphan is linked once. An aborted sweep is logged
    too.
    """
    db = servers.PlainDatabase(engines.create_engine(Settings(database_url=own_server.url)))
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    redis_url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    environment = {**inherited, "MAILGLASS_DATABASE_URL": own_server.url, "MAILGLASS_REDIS_URL": redis_url}
    with server("redis-server", port=port), follow(environment) as process:
        link_one_more(db, process, 1)
        for number in range(2, 4):
            own_server.stop()
            wait_for_log(process, "lost the database", number - 1)
            own_server.start()
            wait_for_log(process, "the database is back", number - 1)
            link_one_more(db, process, number)
    assert len([line for line in process.stderr.splitlines() if "the sweep failed" not in line]) == 4, process.stderr
    with follow(environment) as process:
        link_one_more(db, process, 1)
        link_one_more(db, process, 2)
        wait_for_log(process, "cannot publish to MAILGLASS_REDIS_URL")
        links_expected = 2
        with server("redis-server", port=port):
            while sweeps(process)[-1]["publish_failed"]:  # after a failure, Redis is not used for some seconds
                links_expected += 1
                link_one_more(db, process, links_expected)
            wait_for_log(process, "Redis is back")
        link_one_more(db, process, links_expected + 1)
        wait_for_log(process, "cannot publish to MAILGLASS_REDIS_URL", 2)
    assert process.stderr.count("\n") == 3
    assert [bool(sweep["publish_failed"]) for sweep in sweeps(process)] == [*(links_expected - 1) * [True], False, True]
    assert (db.value(APPENDED), db.value(LINKED_TWICE)) == (3 + links_expected + 1, 0)


def test_a_lasting_fault_is_not_logged_at_every_tick(db: Database, redis_url: str) -> None:
    """A full disk, SQLSTATE 53100, at each COMMIT is a few lines, and the orphan is linked once there is room."""
    db.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE SQLSTATE '53100' USING MESSAGE = 'full'; END $$"
    )
    db.run(
        "CREATE TRIGGER refuse AFTER INSERT ON mailglass_events FOR EACH ROW WHEN (NEW.type = 'reconciled')"
        " EXECUTE FUNCTION refuse()"
    )
    factories.insert_pairs(db, 1, age_seconds=IN_THE_FUTURE)
    with follow(db.environment(redis_url), "--interval", "0.01") as process:
        wait_until(lambda: len(sweeps(process)) >= 3)
        assert {sweep["status"] for sweep in sweeps(process)} == {"failed"}
        assert process.stderr.count("\n") <= 5, process.stderr
        db.run("DROP TRIGGER refuse ON mailglass_events")
        wait_until(lambda: count_linked(process) == 1)
        wait_for_log(process, "the database is back")
    db.run("DROP FUNCTION refuse")


def test_a_schema_that_is_taken_away_ends_follow_with_one_line(db: Database, redis_url: str) -> None:
    """`migrate --remove` or a newer revision does it; the supervisor restarts `follow`."""
    factories.orphan(db, factories.postmark("x"), age_seconds=IN_THE_FUTURE)
    with follow(db.environment(redis_url)) as process:
        wait_until(lambda: db.value("SELECT rank IS NOT NULL FROM mailglass_open_orphans"))
        db.run("UPDATE mailglass_reconcile_version SET version_num = '9999'")
        assert process.wait() == 1
        db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=VERSION)
    assert process.stderr.count("\n") == 1
    assert f"this version knows {VERSION}" in process.stderr
