"""Dispatch for an operator: by the command, after a sweep, and in a Celery worker."""

import datetime as dt
import os
import pickle

import pytest

import commands
import factories
import mailglass_reconcile
import processes
from handling import effects, failing, handle, handle_all, leaving, make_due, states
from mailglass_reconcile.handlers import administration
from mailglass_reconcile.ops import status
from mailglass_reconcile.schedule import DISPATCH_TASK, RECENT_TASK, SWEEP_TASK
from mailglass_reconcile.store.tables import handler_jobs
from processes import COMMAND
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.python_dependent]

HANDLERS = {"MAILGLASS_IMPORTS": "faults.handled"}


def link(db, *message_ids):
    """Insert orphans and their deliveries without linking them."""
    factories.insert_pairs(db, message_ids, type="bounced")


def command(db, *arguments, **more):
    """Run the command with handlers; return its exit code, its JSON and its stderr."""
    environment = {**db.environment(), **HANDLERS, **more}
    path = os.pathsep.join(["tests", "tests/support", "."])
    result = processes.run([*COMMAND, *arguments, "--json"], {**environment, "PYTHONPATH": path})
    assert arguments[0] == "dispatch"
    return result.returncode, commands.conforming("dispatch", result.stdout)[0], result.stderr


def test_the_command_dispatches_lists_dead_jobs_and_retries_them(handler_db):
    """The exit code is 1 while a handler fails, else 0; a process without handlers leaves the jobs."""
    handle_all(handler_db, "steady", "flaky")
    link(handler_db, "m-0", "m-1")
    mailglass_reconcile.reconcile()
    code, result, stderr = command(handler_db, "dispatch", MAILGLASS_IMPORTS="")
    assert (code, result["handled"]) == (0, 0)
    assert "MAILGLASS_IMPORTS" in stderr
    code, result, _ = command(handler_db, "dispatch")
    assert (code, result["handled"], result["failed"]) == (1, 3, 1)
    handler_db.run("UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now() WHERE state = 'waiting'")
    code, listed, _ = command(handler_db, "dispatch", "--dead")
    assert (code, [(job["handler"], job["error"]) for job in listed["dead"]]) == (0, [("flaky", "ValueError")])
    event_id = listed["dead"][0]["event_id"]
    assert command(handler_db, "dispatch", "--retry", factories.new_id())[:2] == (1, {"retried": 0})
    assert command(handler_db, "dispatch", "--retry", event_id)[:2] == (0, {"retried": 1})
    handler_db.run("UPDATE mailglass_deliveries SET provider_message_id = 'm-2' WHERE provider_message_id = 'm-1'")
    assert command(handler_db, "dispatch")[0] == 0
    assert effects(handler_db) == {"steady": 2, "flaky": 2}


SLOW = """
from mailglass_reconcile import on_event

@on_event("bounced", name="slow")
def slow(connection, event):
    connection.exec_driver_sql("SELECT pg_sleep(20)")
"""
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(20)'"


def test_sigterm_costs_an_attempt_of_the_running_event_only(handler_db, tmp_path):
    """A container's stop sends it: the statement is cancelled, and other jobs have not been claimed."""
    (tmp_path / "slow_handlers.py").write_text(SLOW)
    handle(handler_db, ("slow", "bounced"))
    link(handler_db, "m-0", "m-1", "m-2")
    mailglass_reconcile.reconcile()
    handlers = {"PYTHONPATH": str(tmp_path), "MAILGLASS_IMPORTS": "slow_handlers"}
    with processes.start([*COMMAND, "dispatch"], {**handler_db.environment(), **handlers}) as process:
        process.wait_for(lambda: handler_db.value(SLEEPING))
        assert process.stop() == 130
    assert sorted(handler_db.rows("SELECT attempts FROM mailglass_handler_outbox")) == [(0,), (0,), (1,)]


def test_a_worker_s_sweep_runs_handlers_at_once_and_beat_retries_them(site):
    """The bundled app's sweep enqueues a dispatch; beat's dispatch retries what failed."""
    handle_all(site.db, "steady", "flaky")
    link(site.db, "m-0", "m-1")
    with site.worker(**HANDLERS):
        assert site.result(site.send())["linked"] == 2
        wait_until(lambda: states(site.db) == {"done": 3, "waiting": 1}, PATIENCE)

        def is_retried() -> bool:
            """Return True if the job is done after a retry, whose failure may have been recorded late."""
            make_due(site.db)
            site.client.send_task(DISPATCH_TASK, queue="mailglass_handlers")
            return states(site.db) == {"done": 4}

        wait_until(is_retried, PATIENCE)
    assert effects(site.db) == {"steady": 2, "flaky": 2}


@pytest.mark.parametrize("task", [SWEEP_TASK, RECENT_TASK])
def test_a_sweep_in_a_chosen_queue_runs_handlers_there(site, task):
    """`make_beat_schedule(queue="mail")` and `celery call --queue mail` choose one; the app's routes name another."""
    handle_all(site.db, "steady")
    age_seconds = 300 if task == SWEEP_TASK else 0
    factories.insert_pairs(site.db, ["m-0"], type="bounced", age_seconds=age_seconds)
    with site.worker("-Q", "mail", app="worker", until="READY", **HANDLERS):
        site.client.send_task(task, queue="mail")
        wait_until(lambda: "done" in states(site.db), PATIENCE)
    assert not site.redis.exists("celery"), "no worker consumes the queue of the routes"


def test_an_unreachable_broker_does_not_affect_a_sweep(handler_db, caplog, monkeypatch):
    """The jobs wait for the next dispatch, and one line says so."""
    tasks = pytest.importorskip("mailglass_reconcile.tasks")
    handle(handler_db, ("audit", "bounced"))
    link(handler_db, "m-0")
    app = tasks.dispatch.app
    monkeypatch.setattr(app.conf, "broker_url", "redis://127.0.0.1:1/0")
    monkeypatch.setitem(app.conf, "broker_url", "redis://127.0.0.1:1/0")
    monkeypatch.setattr(app.amqp, "_producer_pool", None)  # that of an earlier test
    mailglass_reconcile.reconcile()
    tasks.enqueue_dispatch()
    assert "handlers run at the next dispatch" in caplog.text
    assert states(handler_db) == {"waiting": 1}


def test_beat_dispatches_every_ten_seconds_by_default():
    entry = mailglass_reconcile.make_beat_schedule(dispatch=5.0, queue="mail")["mailglass-reconcile-dispatch"]
    assert (entry["task"], entry["schedule"]) == (DISPATCH_TASK, 5.0)
    assert entry["options"].items() >= {"expires": 60, "queue": "mail"}.items()
    assert mailglass_reconcile.beat_schedule["mailglass-reconcile-dispatch"]["schedule"].seconds == 10
    assert "mailglass-reconcile-dispatch" not in mailglass_reconcile.make_beat_schedule(dispatch=False)


@pytest.mark.guard
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_prune_is_at_three_utc_in_an_app_of_any_time_zone(zone):
    """A crontab has its app's time zone by default; beat pickles its entries."""
    celery = pytest.importorskip("celery")
    at_three = pickle.loads(pickle.dumps(mailglass_reconcile.beat_schedule["mailglass-reconcile-prune"]["schedule"]))  # noqa: S301
    at_three.app = celery.Celery("shop", set_as_current=False)
    at_three.app.conf.timezone = zone
    last = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
    at_three.nowfun = lambda: last
    assert last + at_three.remaining_estimate(last) == dt.datetime(2026, 5, 2, 3, tzinfo=dt.UTC)


@pytest.mark.guard
def test_prune_keeps_waiting_jobs_and_deletes_finished_ones(handler_db):
    """Done jobs go after 14 days, dead ones after 90; waiting ones stay, however old."""
    leaving("good")
    failing("bad", ValueError(), times=1)
    link(handler_db, "m-0", "m-1", "m-2", "m-3")
    mailglass_reconcile.reconcile()
    mailglass_reconcile.dispatch()
    handler_db.run("UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now() WHERE state = 'waiting'")
    assert administration.retry(handler_db.database) == 1
    assert [states(handler_db), mailglass_reconcile.prune().jobs_done] == [{"done": 7, "waiting": 1}, 0]
    handler_db.run("UPDATE mailglass_handler_outbox SET finished_at = finished_at - interval '15 days'")
    pruned = mailglass_reconcile.prune()
    assert (pruned.jobs_done, pruned.jobs_dead) == (7, 0)
    handler_db.run("UPDATE mailglass_handler_outbox SET inserted_at = inserted_at - interval '91 days'")
    at_once = handler_db.settings.model_copy(update={"retention_dead_days": 0})
    mailglass_reconcile.configure(engine=handler_db.engine, settings=at_once)
    assert [mailglass_reconcile.prune().jobs_dead, states(handler_db)] == [0, {"waiting": 1}]
    handler_db.run("UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now()")
    assert mailglass_reconcile.prune().jobs_dead == 1
    handler_db.broken.add("I14")


@pytest.mark.guard
def test_status_counts_waiting_and_dead_jobs(handler_db):
    """Operators look at both."""
    handle_all(handler_db, "audit")
    link(handler_db, "m-0", "m-1")
    mailglass_reconcile.reconcile()
    handler_db.run(
        "UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now()"
        " WHERE event_id = (SELECT event_id FROM mailglass_handler_outbox LIMIT 1)"
    )
    result = status.load_status(handler_db.database)
    assert (result.jobs_waiting, result.jobs_dead) == (1, 1)


JOBS = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, next_at, inserted_at,
                                      finished_at)
SELECT gen_random_uuid(), CASE mod(n, 2) WHEN 0 THEN 'audit' ELSE 'elsewhere' END, gen_random_uuid(),
       CASE mod(n, 2) WHEN 0 THEN 'opened' ELSE 'bounced' END,
       CASE mod(n, 3) WHEN 0 THEN 'waiting' ELSE 'done' END, 0, now() - interval '1 day', now(),
       CASE mod(n, 3) WHEN 0 THEN NULL ELSE now() END
  FROM generate_series(1, 60000) AS n;
"""


BLOCKS = "SELECT pg_stat_get_xact_blocks_fetched(to_regclass(:name))"


@pytest.mark.parametrize("statistics", ["fresh", "of an empty table"])
def test_a_claim_reads_neither_finished_jobs_nor_those_of_other_handlers(handler_db, statistics):
    """40,000 finished jobs, and 20,000 that wait for another handler or type, are before ten due ones."""
    handler_db.run("ALTER TABLE mailglass_handler_outbox SET (autovacuum_enabled = false)")
    handler_db.run("ANALYZE mailglass_handler_outbox")
    with handler_db.engine.begin() as connection:
        connection.exec_driver_sql(JOBS)
    handle(handler_db, ("audit", "bounced"), ("audit", "opened"), ("audit", "complained"))
    link(handler_db, *(f"m-{n}" for n in range(10)))
    mailglass_reconcile.reconcile()
    if statistics == "fresh":
        handler_db.run("ANALYZE mailglass_handler_outbox")
    handler_db.broken.add("I14")
    name = {"name": "public.mailglass_handler_outbox"}
    turns = [("audit", "complained"), ("audit", "bounced"), ("suppress", "bounced")]
    with handler_db.database.writing() as tx:
        before = tx.execute(BLOCKS, name).scalar_one()
        claimed = [handler_jobs.claim(tx, turns, synchronous=True).job for _ in range(11)]
        assert {job.type for job in claimed[:10]} == {"bounced"}
        assert claimed[10] is None
        assert tx.execute(BLOCKS, name).scalar_one() - before < 300
