"""What may happen to `follow`: killed anywhere, Postgres and Redis restarted under it; nothing is lost or doubled."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
import processes
from commands import follow, linked, sweeps
from database import APPENDED, Database
from faults import servers
from faults.redis_servers import PASSWORD, needs_debians_redis, server
from faults.runs import FULL
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing.servers import free_port
from processes import Process
from waiting import wait_until

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
HERE = Path(__file__).parent.parent
ORPHANS = 3
AHEAD = -240
"""An arrival so far ahead of the database's clock that every recent sweep of the next minutes looks at it."""


def test_follow_killed_at_any_fail_point_is_made_good_by_the_next_tick(
    db: Database, redis_url: str, record_property: Record
) -> None:
    """SIGKILL around each statement, COMMIT and publishing, with three orphans in batches of two."""
    kills = 0
    for number in range(1, 60) if FULL else (19, 24, 26, 28):
        before = db.appended()
        factories.insert_pairs(db, ORPHANS, age_seconds=AHEAD)
        more = {"MAILGLASS_BATCH_SIZE": "2", "SWEEPER_DIES_AT": str(number), "SWEEPER_FOLLOWS": "yes"}
        environment = {**db.environment(redis_url), **more, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
        assert processes.run(["-m", "faults.sweeper"], environment).returncode == -9
        db.wait_until_alone()
        kills += 1
        result = mailglass_reconcile.reconcile_recent()
        assert result.status == "ok"
        assert db.appended() == before + ORPHANS
    record_property("fault", ("follow killed at a fail point", kills))


@pytest.fixture(scope="module")
def own_server() -> Iterator[servers.Postgres]:
    """A PostgreSQL that may be stopped."""
    with servers.postgres() as made:
        settings = Settings(database_url=made.url)
        runner.migrate(engines.create_engine(settings), settings, lambda line: None)
        yield made


class Plain:
    """As much of a test's database as is needed of one on a server of its own."""

    def __init__(self, url: str) -> None:
        self.engine = engines.create_engine(Settings(database_url=url))

    def appended(self) -> int:
        """How many links there are."""
        with self.engine.begin() as connection:
            return connection.exec_driver_sql(APPENDED).scalar_one()

    def doubled(self) -> int:
        """How many orphans have more than one."""
        with self.engine.begin() as connection:
            return connection.execute(sa.text(DOUBLED)).scalar_one()


DOUBLED = """
SELECT count(*) FROM (SELECT metadata ->> 'reconciled_from_event_id' FROM mailglass_events WHERE type = 'reconciled'
                       GROUP BY 1 HAVING count(*) > 1) AS twice
"""


def says(process: Process, words: str, times: int = 1) -> None:
    """Wait until standard error has these words so many times."""
    process.wait_for(lambda: process.stderr.count(words) == times, 30)


def links(db: Plain, it: Process, wanted: int) -> None:
    """Let one more pair arrive, and wait until it is linked."""
    factories.insert_pairs(db, 1, age_seconds=AHEAD)
    wait_until(lambda: linked(it) == wanted)


@needs_debians_redis
def test_follow_outlives_restarts_of_postgres_and_of_redis_and_says_so_in_a_line_each(
    own_server: servers.Postgres, record_property: Record
) -> None:
    """One when it was lost, one when it is back; every orphan is linked once. A sweep that is cut off says so, too."""
    db, port = Plain(own_server.url), free_port()
    others = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    redis_url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    environment = {**others, "MAILGLASS_DATABASE_URL": own_server.url, "MAILGLASS_REDIS_URL": redis_url}
    with server("redis-server", port=port), follow(environment) as it:
        links(db, it, 1)
        for number in range(2, 4):
            own_server.stop()
            says(it, "lost the database", number - 1)
            own_server.start()
            says(it, "the database is back", number - 1)
            links(db, it, number)
    assert len([line for line in it.stderr.splitlines() if "the sweep failed" not in line]) == 4, it.stderr
    with follow(environment) as it:
        links(db, it, 1)
        links(db, it, 2)
        says(it, "cannot publish to MAILGLASS_REDIS_URL")
        links_expected = 2
        with server("redis-server", port=port):
            while sweeps(it)[-1]["publish_failed"]:  # after a failure, Redis is not asked for some seconds
                links_expected += 1
                links(db, it, links_expected)
            says(it, "Redis is back")
        links(db, it, links_expected + 1)
        says(it, "cannot publish to MAILGLASS_REDIS_URL", 2)
    assert it.stderr.count("\n") == 3
    assert [bool(one["publish_failed"]) for one in sweeps(it)] == [*(links_expected - 1) * [True], False, True]
    assert (db.appended(), db.doubled()) == (3 + links_expected + 1, 0)
    record_property("fault", ("restarts under follow", 4))


def test_a_fault_that_lasts_is_not_told_of_at_every_tick(db: Database, redis_url: str) -> None:
    """A full disk at each COMMIT, as SQLSTATE 53100: a few lines, and the link as soon as there is room."""
    db.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE SQLSTATE '53100' USING MESSAGE = 'full'; END $$"
    )
    db.run(
        "CREATE TRIGGER refuse AFTER INSERT ON mailglass_events FOR EACH ROW WHEN (NEW.type = 'reconciled')"
        " EXECUTE FUNCTION refuse()"
    )
    factories.insert_pairs(db, 1, age_seconds=AHEAD)
    with follow(db.environment(redis_url), "--interval", "0.01") as it:
        wait_until(lambda: len(sweeps(it)) >= 3)
        assert {one["status"] for one in sweeps(it)} == {"failed"}
        assert it.stderr.count("\n") <= 5, it.stderr
        db.run("DROP TRIGGER refuse ON mailglass_events")
        wait_until(lambda: linked(it) == 1)
        says(it, "the database is back")
    db.run("DROP FUNCTION refuse")


def test_a_schema_that_is_taken_away_ends_follow_with_one_line(db: Database, redis_url: str) -> None:
    """As `migrate --remove` or a newer revision does: its supervisor starts it again."""
    factories.orphan(db, factories.postmark("x"), age_seconds=AHEAD)
    with follow(db.environment(redis_url)) as it:
        wait_until(lambda: db.value("SELECT rank IS NOT NULL FROM mailglass_open_orphans"))
        db.run("UPDATE mailglass_reconcile_version SET version_num = '9999'")
        assert it.wait() == 1
        db.run("UPDATE mailglass_reconcile_version SET version_num = '0001h'")
    assert it.stderr.count("\n") == 1
    assert "this version knows 0001h" in it.stderr
