"""Dispatchers are killed and lose their connection at each COMMIT: each effect happens exactly once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import pytest
from pydantic import SecretStr

import factories
import mailglass_reconcile
import processes
from database import Database
from django_project import databases_name
from faults import proxy
from faults.proxy import Fault
from faults.racing import COMMIT
from faults.runs import FULL
from handling import effects, handle_all, leaving, make_due, states
from mailglass_reconcile import DatabaseUnavailableError, dispatch
from mailglass_reconcile.handlers import administration
from mailglass_reconcile.store import engines
from processes import Process
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

Record = Callable[[str, object], None]
EVENTS = 1_000 if FULL else 40
KILLS = 6
"""How many times handlers kill their process, on average."""


def link_orphans(db: Database, number: int) -> None:
    """Link *number* new orphans by a sweep, one to each delivery."""
    db.run("UPDATE mailglass_deliveries SET provider_message_id = NULL WHERE provider_message_id IS NOT NULL")
    factories.insert_pairs(db, [f"m-{n}" for n in range(number)], type="bounced")
    assert mailglass_reconcile.reconcile().linked == number


def dispatchers(db: Any, redis_url: str, **more: str) -> AbstractContextManager[Process]:
    """Run a process that forks a dispatcher per line: the fail point that kills it, from 1, or 0 for none."""
    environment = {
        **db.environment(redis_url),
        **{"PYTHONPATH": "tests:tests/support:.", "MAILGLASS_IMPORTS": "faults.handled"},
        **more,
    }
    return processes.start(["-m", "faults.dispatcher"], environment, stdin=True, exit_code=0)


def dispatch_in(process: Process, fail_point: int = 0) -> int:
    """Fork a dispatcher, and return its exit code: 0, or -9."""
    process.write_line(fail_point)
    return int(process.read_line())


@pytest.mark.parametrize(
    "more",
    [pytest.param({}, id="on the engine's"), pytest.param({"HANDLED_DJANGO": "1"}, id="on Django's connection")],
)
def test_handlers_that_fail_and_kill_their_process_act_exactly_once(
    handler_db: Database, redis_url: str, record_property: Record, more: dict[str, str]
) -> None:
    """Two dispatchers are restarted until no job waits; dead jobs are retried."""
    handlers = ("steady", "flaky", *(["orm"] if more else []))
    handle_all(handler_db, *handlers)
    link_orphans(handler_db, EVENTS)
    killed = 0
    more = {**more, "HANDLED_KILLS": str(KILLS / (1.4 * EVENTS))}
    with dispatchers(handler_db, redis_url, **more) as first, dispatchers(handler_db, redis_url, **more) as second:
        while states(handler_db) != {"done": len(handlers) * EVENTS}:
            for process in (first, second):
                process.write_line(0)
            killed += sum(process.read_line() != "0" for process in (first, second))
            administration.retry(handler_db.database)
            make_due(handler_db)
    assert effects(handler_db) == dict.fromkeys(handlers, EVENTS)
    record_property("fault", ("dispatchers killed by their handlers", killed))


@pytest.mark.parametrize(
    ("is_retry", "points"),
    [
        pytest.param(False, 60, id="new"),
        pytest.param(True, 40, id="tried before"),  # one job of six is left
    ],
)
def test_a_dispatcher_killed_at_any_fail_point_loses_and_doubles_nothing(
    handler_db: Database, redis_url: str, record_property: Record, is_retry: bool, points: int
) -> None:
    """One of three events fails first; another dispatcher does the rest, and each effect happens once."""
    kills = total = 0
    handle_all(handler_db, "steady", "flaky")
    with dispatchers(handler_db, redis_url) as process:
        for number in count(1, 1 if FULL else 20):
            link_orphans(handler_db, 3)
            total += 3
            if is_retry:
                assert dispatch_in(process) == 0
                make_due(handler_db)
            hit = dispatch_in(process, number) == -9
            kills += hit
            handler_db.wait_until_alone()
            while states(handler_db) != {"done": 2 * total}:
                make_due(handler_db)
                assert dispatch_in(process) == 0
            assert effects(handler_db) == {"steady": total, "flaky": total}
            if not hit:
                break
    assert kills >= (points if FULL else 3)
    record_property("fault", ("dispatchers killed at a fail point", kills))


Lead = Callable[[str], Any]


@pytest.fixture
def on_engine(handler_db: Database) -> Lead:
    """Run handlers on an engine for a URL."""

    @contextmanager
    def lead(url: str) -> Iterator[None]:
        settings = handler_db.settings.model_copy(update={"database_url": SecretStr(url)})
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        yield
        mailglass_reconcile.configure(engine=handler_db.engine, settings=settings)

    return lead


@pytest.fixture
def on_django(handler_db: Database, app: Any) -> Lead:
    """Run handlers on Django's connection to a URL."""
    return databases_name


OF_HANDLERS = range(3, 14, 2)
"""Which COMMITs are of the six jobs of three events: the first one registers, and one before each job claims it."""
PLACES = [pytest.param("on_engine", marks=pytest.mark.guard), "on_django"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_a_connection_lost_at_a_commit_loses_and_doubles_no_effect(
    handler_db: Database, request: pytest.FixtureRequest, place: str, fault: Fault, record_property: Record
) -> None:
    """For each N, the N-th COMMIT is lost; if only the response to a handler's was lost, nothing is retried."""
    lead, total, raised = request.getfixturevalue(place), 0, []
    received, received_by_other = leaving("effect", "bounced"), leaving("other", "bounced")
    for number in count(1):
        link_orphans(handler_db, 3)
        total += 3
        result = None
        with proxy.postgres_proxy(handler_db.url) as (through, url), lead(url):
            through.arm(COMMIT, fault, number)
            try:
                result = dispatch()
            except DatabaseUnavailableError:
                raised.append(number)
        handler_db.wait_until_alone()
        if result:
            undone = fault == "before" and number in OF_HANDLERS
            assert (result.handled, result.failed) == (6 - undone, undone)
        while states(handler_db) != {"done": 2 * total}:
            make_due(handler_db)
            dispatch()
        assert effects(handler_db) == {"effect": total, "other": total}
        if not through.dropped:
            break
    # Registration and claims, which also record the last job's end: only the error shows that these were lost.
    assert raised == [1, *range(2, 15, 2)]
    assert fault == "before" or len(received) == len(received_by_other) == total
    record_property("fault", (f"a handler's connection lost {fault} COMMIT", number - 1))


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


@pytest.mark.parametrize("place", PLACES)
def test_a_dispatcher_waits_for_a_commit_that_is_still_running(
    handler_db: Database, request: pytest.FixtureRequest, place: str
) -> None:
    """The connection is lost during COMMIT, and the row's lock shows that it is undecided."""
    received = leaving("effect", "bounced")
    link_orphans(handler_db, 1)
    with handler_db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(SLOW_COMMIT)

    def dispatched() -> Any:
        with request.getfixturevalue(place)(url):
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
        result = future.result(20)
    assert (result.handled, result.failed, len(received)) == (1, 0, 1)
    assert states(handler_db) == {"done": 1}
