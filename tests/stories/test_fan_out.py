"""A backlog that is cut into ranges, one task for each, on real workers; and recent sweeps by a real beat."""

import re

import pytest

import factories
import mailglass_reconcile
from factories import delivery_row, insert, orphan_row, postmark
from locks import KEY, SESSIONS, key_of
from mailglass_reconcile import runtime
from mailglass_reconcile.ops.status import load_status
from mailglass_reconcile.rules.states import OUTCOMES
from mailglass_reconcile.singleton.lock import LockBackend, running_token
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.python_dependent]

WHO = """
CREATE TABLE public.who (name text);
CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$ BEGIN
  INSERT INTO public.who VALUES (current_setting('application_name'));
  WHILE (SELECT count(*) FROM public.who) > (SELECT free FROM public.gate) LOOP PERFORM pg_sleep(0.02); END LOOP;
  RETURN NULL; END $$;
CREATE TABLE public.gate (free integer);
INSERT INTO public.gate VALUES (0);
CREATE TRIGGER slow AFTER INSERT ON mailglass_events FOR EACH STATEMENT EXECUTE FUNCTION public.slow();
"""


def backlog(site, orphans: int) -> None:
    """Insert orphans that arrived a second apart, each with its delivery.

    Batches wait until the gate is gone, except for the first so many that are free.
    """
    ids = [factories.new_id() for _ in range(orphans)]
    rows = [orphan_row(postmark(id_), age_seconds=100 + number) for number, id_ in enumerate(ids)]
    insert(site.db, [delivery_row(id_) for id_ in ids], rows)
    with site.db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(WHO)


AT_WORK = """
SELECT application_name FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""


WINDOW = "SELECT started_at - covered_until FROM mailglass_reconcile_runs WHERE kind = 'full' AND ranges IS NOT NULL"
RANGES = "SELECT ranges, ranges_done FROM mailglass_reconcile_runs WHERE kind = 'full' AND ranges IS NOT NULL"


def fan_out(site, size: int, **options: object) -> str:
    """Request a sweep as beat does, and return the task's id."""
    return site.client.send_task(
        "mailglass_reconcile.tasks.reconcile", kwargs={"fan_out": size}, queue="mailglass_reconcile", **options
    ).id


@pytest.mark.slow
def test_ten_ranges_are_swept_by_two_workers_and_the_lock_is_held_until_a_minute_after_the_last(site):
    """The counts add up to those of one sweep; a tick meanwhile is a duplicate, the next one is not."""
    backlog(site, 50)
    lock = key_of(site)
    with site.worker("-c", "1", PGAPPNAME="one"), site.worker("-c", "1", PGAPPNAME="two"):
        cut = site.result(fan_out(site, 5))
        assert (cut["status"], cut["eligible"], len(cut["tasks"])) == ("fanned_out", 50, 10)
        assert site.redis.get(lock).startswith(b"running ")
        assert request_as_beat(site) == "duplicate"
        wait_until(lambda: {name for (name,) in site.db.rows(AT_WORK)} == {"one", "two"}, PATIENCE)
        site.db.run("DELETE FROM gate")
        results = [site.result(task) for task in cut["tasks"]]
        assert list(site.redis.scan_iter("mailglass_reconcile:lock:*")) == [lock.encode()]
        assert 50 < site.redis.ttl(lock) <= 60
        site.redis.delete(lock)  # like its expiry after a minute
        status = load_status(runtime.database())
        [swept] = [run for run in status.last_runs if run["status"] == "ok"]
        assert (swept["kind"], swept["runs"], swept["scanned"], swept["linked"]) == ("full", 1, 50, 50)
        assert site.db.rows(RANGES) == [(10, 10)]
        assert site.db.value(WINDOW).total_seconds() == pytest.approx(60, abs=5)
        assert status.healthy, status.problems
        assert request_as_beat(site) == "new"
    assert sum(result["scanned"] for result in results) == site.count_links() == 50
    assert all(result["scanned"] == sum(result[state] for state in OUTCOMES) for result in results)
    assert {result["status"] for result in results} == {"ok"}
    assert {name for (name,) in site.db.rows("SELECT DISTINCT name FROM who")} >= {"one", "two"}
    assert site.count_in_log("cut 50 open events into 10 ranges") == 1


def request_as_beat(site) -> str:
    """Request a full sweep by `apply_async`, and return whether it was new or a duplicate."""
    asking = (
        "from mailglass_reconcile.celery import app; from mailglass_reconcile.tasks import reconcile as r;"
        "import uuid; app.conf.singleton_raise_on_duplicate = True;"
        "from celery_singleton import DuplicateTaskError\n"
        "try: r.apply_async(kwargs={'fan_out': 5}); print('new')\n"
        "except DuplicateTaskError: print('duplicate')"
    )
    return site.run_python("-c", asking)


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_range_until_the_next_tick_and_nothing_is_doubled(site):
    """SIGKILL hits its processes in mid-range; the other ranges end, the lock expires, and a later sweep links the
    rest.
    """
    backlog(site, 40)
    site.db.run("UPDATE gate SET free = 1")
    with site.worker("-c", "1", MAILGLASS_BATCH_SIZE="4") as process:
        cut = site.result(fan_out(site, 10))
        assert len(cut["tasks"]) == 4
        wait_until(lambda: site.count_links() == 4 and site.db.value(SESSIONS), PATIENCE)
        process.kill()
    site.db.run("DELETE FROM gate")
    site.db.run("DROP TRIGGER slow ON mailglass_events")
    wait_until(lambda: not site.db.value(SESSIONS), PATIENCE)
    assert site.count_links() in (4, 8), "the batch that waited may have been committed, and nobody heard of it"
    assert all(0 < site.redis.ttl(name) <= 60 for name in site.redis.scan_iter("mailglass_reconcile:lock:*"))
    with site.worker("-c", "1"):
        # Neither the dead worker's tasks, nor those that it had prefetched.
        wait_until(lambda: len(site.sweep_results()) >= 2, PATIENCE)
        for name in site.redis.scan_iter("mailglass_reconcile:lock:*"):
            site.redis.delete(name)  # like its expiry after a minute
        assert site.result(fan_out(site, 100))["status"] == "ok"
    assert site.count_links() == 40


OUTAGE = """
CREATE FUNCTION public.down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57P03'; END $$;
CREATE TRIGGER down BEFORE UPDATE ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION public.down()
"""


@pytest.mark.slow
def test_ranges_that_lose_the_server_fail_and_the_full_sweep_after_their_lock_links_them(site):
    rows = [orphan_row(postmark(f"m-{number}"), age_seconds=100 + number) for number in range(20)]
    insert(site.db, [delivery_row(f"m-{number}") for number in range(20)], rows)
    site.db.run(OUTAGE)
    with site.worker("-c", "2"):
        tasks = [site.client.AsyncResult(task_id) for task_id in site.result(fan_out(site, 10))["tasks"]]
        wait_until(lambda: all(task.ready() for task in tasks), PATIENCE)
        assert [(task.state, type(task.result).__name__) for task in tasks] == [
            ("FAILURE", "DatabaseUnavailableError")
        ] * 2
        assert load_status(runtime.database()).last_runs[0]["status"] == "failed"
        site.db.run("DROP TRIGGER down ON mailglass_deliveries")
        site.redis.delete(key_of(site))
        assert site.result(fan_out(site, 100))["linked"] == 20


@pytest.mark.slow
def test_a_range_yields_to_a_sweep_of_everything_that_has_the_lock_by_now(site):
    """It was queued until the lock expired and the next tick had cut again, whose ranges link everything."""
    site.add(3)
    with site.worker("-c", "1"):
        site.redis.set(key_of(site), "running somebody", ex=60)
        late = site.client.send_task(
            "mailglass_reconcile.tasks.reconcile",
            kwargs={"after": "2000-01-01", "until": "infinity"},
            queue="mailglass_reconcile",
            headers={"mailglass_range_of": "running earlier 0123456789ab"},
        ).id
        assert site.result(late) == {"status": "duplicate", "of": "somebody"}
        site.redis.delete(key_of(site))
        assert site.result(fan_out(site, 10))["linked"] == 3


@pytest.mark.slow
def test_beat_and_a_worker_link_an_orphan_in_its_grace_within_two_seconds_and_say_so_in_one_line(site):
    """An adopter's app has recent=1.0; idle ticks log no line of ours and store no result."""
    with site.worker("-B", "-s", "one", app="worker", until="READY", WORKER_RECENT_SECONDS="1"):
        wait_until(lambda: site.count_in_log("reconcile_recent[") > 3, PATIENCE)
        for number in range(1, 4):
            insert(site.db, [], [orphan_row(postmark(f"m{number}"), age_seconds=0)])
            factories.delivery(site.db, f"m{number}")
            wait_until(lambda: site.count_links() == number, 2.5)  # noqa: B023
        wait_until(lambda: site.count_in_log("swept all tenants: linked 1 of") == 3)
    lines = [line for line in site.log.read_text().splitlines() if "mailglass" in line or "swept" in line]
    celerys = r"Task mailglass|Sending due task|mailglass_reconcile\.tasks\.|beat"
    lines = [line for line in lines if not re.search(celerys, line)]
    assert len(lines) == 3, lines
    assert site.stored_results() == []


@pytest.mark.slow
def test_a_fault_of_recent_sweeps_is_no_traceback_and_below_info_one_line(site):
    """It ticks every second on a database without our tables."""
    nowhere = {"MAILGLASS_DATABASE_SCHEMA": "nowhere", "WORKER_RECENT_SECONDS": "0.3"}
    with site.worker("-B", "-s", "one", "-l", "warning", "-c", "1", app="worker", until="READY", **nowhere):
        wait_until(lambda: site.count_in_log("reconcile_recent failed"), PATIENCE)
        before = site.redis.llen("celery")
        wait_until(lambda: site.redis.llen("celery") >= before, PATIENCE)
        site.client.send_task("mailglass_reconcile.tasks.reconcile_recent", queue="celery", ignore_result=False)
    assert site.count_in_log("reconcile_recent failed") == 1
    assert site.count_in_log("Traceback") == 0


def test_a_lock_that_ranges_share_is_released_by_none_of_them(store):
    """The run that cut and its ranges share one token: each end extends the lock by a minute, and then it expires."""
    lock, token = LockBackend(store), running_token("cut")
    assert lock.acquire(KEY, token) is None
    for _ in range(3):
        assert lock.acquire(KEY, token) is None
        with lock.renewing(KEY, token, lambda: True):
            store.expire(KEY, 5)
        assert 50 < store.ttl(KEY) <= 60
        assert lock.acquire(KEY, running_token("another")) == "cut"


def test_the_schedule_says_how_often_and_how_much_and_refuses_what_cannot_be():
    """The entry of recent sweeps expires after its interval, and stores no result."""
    entries = mailglass_reconcile.make_beat_schedule(recent=2.0, fan_out=50_000, queue="mail")
    assert entries["mailglass-reconcile-recent"] == {
        "task": "mailglass_reconcile.tasks.reconcile_recent",
        "schedule": 2.0,
        "kwargs": {"interval": 2.0},
        "options": {
            "expires": 2.0,
            "ignore_result": True,
            "headers": {"mailglass_origin": "beat"},
            "queue": "mail",
        },
    }
    assert entries["mailglass-reconcile"]["kwargs"] == {"fan_out": 50_000}
    daily = {"mailglass-reconcile", "mailglass-reconcile-prune"}
    assert set(mailglass_reconcile.make_beat_schedule()) == {*daily, "mailglass-reconcile-dispatch"}
    assert set(mailglass_reconcile.make_beat_schedule(dispatch=False)) == daily
    for wrong in ({"recent": 0}, {"recent": 61}, {"fan_out": 0}):
        with pytest.raises(ValueError, match="must be"):
            mailglass_reconcile.make_beat_schedule(**wrong)
