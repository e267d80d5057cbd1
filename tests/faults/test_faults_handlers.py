"""Handlers that kill their process, and a COMMIT that is still running: each effect happens exactly once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from database import Database
from faults import proxy
from faults.works import HandlersOnDjango, HandlersOnEngine, killable_process, link_orphans
from handling import effects, handle_all, make_due, states
from mailglass_reconcile import dispatch
from mailglass_reconcile.handlers import administration
from marking import nightly_unless
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.version_independent, pytest.mark.timeout(1_500)]

KILLS = 6
"""How many times handlers kill their process, on average."""


@pytest.mark.parametrize("events", nightly_unless((40).__eq__, [40, 1_000]))
@pytest.mark.parametrize(
    "more",
    [pytest.param({}, id="on the engine's"), pytest.param({"HANDLED_DJANGO": "1"}, id="on Django's connection")],
)
def test_handlers_that_fail_and_kill_their_process_act_exactly_once(
    handler_db: Database, redis_url: str, more: dict[str, str], events: int
) -> None:
    """Two dispatchers are restarted until no job waits; dead jobs are retried."""
    handlers = ("steady", "flaky", *(["orm"] if more else []))
    handle_all(handler_db, *handlers)
    link_orphans(handler_db, events)
    killed = 0
    more = {**more, "MAILGLASS_IMPORTS": "faults.handled", "HANDLED_KILLS": str(KILLS / (1.4 * events))}
    with (
        killable_process(handler_db, redis_url, "dispatch", **more) as first,
        killable_process(handler_db, redis_url, "dispatch", **more) as second,
    ):
        while states(handler_db) != {"done": len(handlers) * events}:
            for process in (first, second):
                process.begin()
            killed += sum(process.end()[0] != 0 for process in (first, second))
            administration.retry(handler_db.database)
            make_due(handler_db)
    assert effects(handler_db) == dict.fromkeys(handlers, events)


SLOW_COMMIT = """
CREATE FUNCTION witness.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_advisory_xact_lock(1);
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON witness.effects DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION witness.slow();
"""
WAITING = """
SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database OR l.database IS NULL
 WHERE d.datname = current_database() AND NOT l.granted AND l.locktype = :type
"""


@pytest.mark.parametrize("make", [pytest.param(HandlersOnEngine, marks=pytest.mark.guard), HandlersOnDjango])
def test_a_dispatcher_waits_for_a_commit_that_is_still_running(
    handler_db: Database, request: pytest.FixtureRequest, make: type[HandlersOnEngine]
) -> None:
    """The connection is lost during COMMIT, and the row's lock shows that it is undecided."""
    for fixture in make.fixtures:
        request.getfixturevalue(fixture)
    work = make(handler_db)
    link_orphans(handler_db, 1)
    with handler_db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(SLOW_COMMIT)

    def dispatched() -> Any:
        with work.connected_to(url):
            return dispatch()

    with (
        proxy.postgres_proxy(handler_db.url) as (through, url),
        handler_db.engine.begin() as holding,
        ThreadPoolExecutor(1) as pool,
    ):
        holding.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        future = pool.submit(dispatched)
        wait_until(lambda: handler_db.value(WAITING, type="advisory"))
        through.drop()
        wait_until(lambda: handler_db.value(WAITING, type="transactionid"))
        holding.rollback()
        result = future.result(PATIENCE)
    assert (result.handled, result.failed, sum(map(len, work.calls))) == (2, 0, 2)
    assert states(handler_db) == {"done": 2}
