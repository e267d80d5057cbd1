"""Real workers, real beats and a real broker: each worker is a process that ends with its test."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import pytest

import factories
from installation import CALL, QUEUE, Site
from locks import SESSIONS, key_of
from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.schedule import DISPATCH_TASK, PRUNE_TASK, RECENT_TASK, SWEEP_TASK
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.python_dependent]


@pytest.mark.guard
def test_a_worker_with_beat_sweeps_on_its_schedule_and_a_second_beat_changes_nothing(site):
    """An adopter's app sweeps every second with two beats: orphans get linked, and the adopter's entry is still
    there.

    The worker is started as operators do; in other tests it is forked.
    """
    site.add(3)
    with ExitStack() as stack:
        site.forks = False
        stack.enter_context(site.worker("-B", "-s", "one", app="worker", WORKER_SWEEP_SECONDS="1"))
        site.forks = True
        beat = ("beat", "-l", "info", "-s", "two", "--pidfile=")
        stack.enter_context(site.celery(*beat, app="worker", WORKER_SWEEP_SECONDS="1", until="beat: St"))
        wait_until(lambda: site.count_links() == 3 and len(site.sweep_results()) > 1, PATIENCE)
        wait_until(lambda: site.count_in_log("Sending due task mailglass-reconcile") > 4, PATIENCE)
    assert sum(result["linked"] for result in site.sweep_results()) == 3


def test_celery_call_sweeps_one_tenant_and_its_result_is_kept_for_a_day(site):
    """The standalone app consumes both its queues without a flag, and keeps the counts for a day."""
    site.add(2)
    site.add(1, "other")
    with site.worker():
        task_id = site.call(tenant_id="acme")
        result = site.result(task_id)
        assert 86_000 < site.redis.ttl(f"celery-task-meta-{task_id}") <= 86_400
        pruned = site.client.send_task("mailglass_reconcile.tasks.prune", queue="mailglass_maintenance").id
        assert "succeeded" in site.result(pruned)
        assert not site.count_in_log("does not consume")
    assert (result["status"], result["linked"], result["tenant_id"], site.count_links()) == ("ok", 2, "acme", 2)


ASK = """
from mailglass_reconcile.celery import app
from mailglass_reconcile.tasks import reconcile
print(reconcile.apply_async().id, reconcile.apply_async((None,)).id, reconcile.apply_async(kwargs={"limit": 99}).id)
"""


def test_of_eight_requests_at_once_one_sweeps_and_the_others_are_its_duplicates(site):
    """Three requests by apply_async in three spellings, three by send_task and two by celery call race."""
    site.add(200)
    site.db.run(GATE)
    with site.worker("-c", "4", MAILGLASS_BATCH_SIZE="5"), ThreadPoolExecutor() as threads:
        askers = [threads.submit(site.run_python, *request) for request in (("-c", ASK), CALL, CALL)]
        task_ids = {site.send(), site.send(None), site.send(None, 500)}
        for asker in askers:
            task_ids |= set(asker.result(PATIENCE).split())
        wait_until(lambda: len(site.stored_results()) == len(task_ids) - 1, PATIENCE)
        site.db.run("DELETE FROM gate")
        results = {task_id: site.result(task_id) for task_id in task_ids}
    (winner,) = (task_id for task_id, result in results.items() if "scanned" in result)
    assert all(
        result == {"status": "duplicate", "of": winner} for task_id, result in results.items() if task_id != winner
    )
    assert len(task_ids) in {5, 6}, "where one of apply_async sweeps, its three results are one"
    assert results[winner]["linked"] == site.count_links() > 0


GATE = """
CREATE TABLE public.gate AS SELECT true AS closed;
CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  FOR tries IN 1 .. 200 LOOP
    EXIT WHEN NOT EXISTS (SELECT FROM public.gate);
    PERFORM pg_sleep(0.1);
  END LOOP;
  RETURN NULL;
END $$;
CREATE TRIGGER wait AFTER INSERT ON mailglass_events FOR EACH STATEMENT EXECUTE FUNCTION public.wait()
"""
"""Each batch waits until the gate is open, and at most 20 of the 30 seconds that a statement of it may take."""


def test_celery_call_meets_the_lock_when_its_run_starts(site):
    """Two requests during a sweep are its duplicates; the third runs, and releases the lock."""
    with site.worker():
        holder = "somebody"
        key = key_of(site)
        site.redis.set(key, f"running {holder}", ex=60)
        assert [site.result(site.call()) for _ in range(2)] == [{"status": "duplicate", "of": holder}] * 2
        site.redis.delete(key)
        assert site.result(site.call())["status"] == "ok"
        assert not site.redis.exists(key)


def test_eight_tenants_have_eight_sweeps(site):
    """None is a duplicate of another."""
    tenants = [f"tenant {number}" for number in range(8)]
    for tenant in tenants:
        site.add(1, tenant)
    with site.worker(pool="threads"):
        results = [site.result(task_id) for task_id in [site.send(tenant) for tenant in tenants]]
    assert [(result["tenant_id"], result["linked"]) for result in results] == [(tenant, 1) for tenant in tenants]


def test_after_a_worker_was_killed_in_mid_sweep_a_later_one_links_the_rest_once(site):
    """SIGKILL hits all its processes while a batch waits; the lock expires within a minute, and nothing is linked
    twice.
    """
    site.add(60)
    site.db.run(SLOW_BATCH)
    with site.worker(MAILGLASS_BATCH_SIZE="1") as process:
        site.send()
        wait_until(lambda: site.count_links() > 0, PATIENCE)
        process.kill()
    wait_until(lambda: not site.db.value(SESSIONS), PATIENCE)
    before = site.count_links()
    assert 0 < before < 60
    assert 0 < site.redis.ttl(key_of(site)) <= 60
    site.redis.delete(key_of(site))
    site.db.run("DROP TRIGGER slow ON mailglass_events")
    site.log.write_text("")
    with site.worker():
        assert site.result(site.send())["linked"] == 60 - before


def test_a_malformed_call_fails_that_task_and_a_solo_worker_lives_on(site):
    """send_task does not check arguments; unknown, wrong and too many ones are each a line in the log."""
    with site.worker(pool="solo"):
        ids = [site.client.send_task(task, args, kwargs, queue=QUEUE).id for task, args, kwargs in MALFORMED]
        assert site.result(site.send())["status"] == "ok"
        assert all(isinstance(outcome_of(site, id_), TypeError | ValueError) for id_ in ids[:5])
    log = site.log.read_text()
    assert all(f"[{id_}] raised expected: InvalidArgumentError(" in log for id_ in ids)
    assert "limit must be at least 1" in log
    assert "interval must be int | float, not str" in log
    assert "the interval of recent sweeps must be above 0" in log
    assert log.count("got an unexpected keyword argument 'nobody'") == 4
    assert "Traceback" not in log


MALFORMED = [
    (SWEEP_TASK, (), {"nobody": 1}),
    (SWEEP_TASK, (7,), {}),
    (SWEEP_TASK, (1, 2, 3), {}),
    (SWEEP_TASK, (None,), {"limit": "many"}),
    (SWEEP_TASK, (None, 0), {}),
    (RECENT_TASK, (), {"nobody": 1}),
    (RECENT_TASK, ("often",), {}),
    (RECENT_TASK, (0,), {}),
    (PRUNE_TASK, (), {"nobody": 1}),
    (DISPATCH_TASK, (), {"nobody": 1}),
]


def outcome_of(site: Site, task_id: str) -> object:
    """Wait for a task's end, and return its result or error."""
    return site.client.AsyncResult(task_id).get(timeout=PATIENCE, interval=0.05, propagate=False)


def test_a_soft_time_limit_while_it_reads_ends_the_sweep_as_partial(site):
    """The statement that waits for a lock is cancelled, and the worker's next sweep is complete."""
    site.add(3)
    with site.worker():
        with site.held_up():
            task_id = site.send(soft_time_limit=1)
            result = site.result(task_id)
        assert (result["status"], result["linked"]) == ("partial", 0)
        assert site.count_in_log("the soft time limit ended a sweep") == 1
        assert site.result(site.send())["linked"] == 3


def test_a_soft_time_limit_between_batches_keeps_and_counts_what_was_committed(site):
    """A trigger makes each batch of one take half a second; the result equals the ledger."""
    site.add(60)
    site.db.run(SLOW_BATCH)
    with site.worker(MAILGLASS_BATCH_SIZE="1"):
        result = site.result(site.send(soft_time_limit=5))
    assert result["status"] == "partial"
    assert 0 < result["linked"] == site.count_links() < 60
    assert result["published"] == 2 * result["linked"]
    assert result["skipped"] == 60 - result["linked"]


SLOW_BATCH = """
CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT ON mailglass_events FOR EACH STATEMENT
EXECUTE FUNCTION public.slow()
"""


def test_a_hard_time_limit_loses_nothing_that_was_committed(site):
    """The child is killed during a sweep; its successor links the rest, each once."""
    site.add(60)
    site.db.run(SLOW_BATCH)
    with site.worker(MAILGLASS_BATCH_SIZE="1"):
        task_id = site.send(time_limit=5)
        assert type(outcome_of(site, task_id)).__name__ == "TimeLimitExceeded"
        site.db.run("DROP TRIGGER slow ON mailglass_events")
        before = site.count_links()
        site.redis.delete(key_of(site))
        assert site.result(site.send())["linked"] == 60 - before
    assert 0 < before < 60


def test_a_warm_shutdown_lets_the_running_sweep_finish(site):
    """After SIGTERM, all batches are committed and counted, and the result is stored."""
    site.add(30)
    site.db.run(SLOW_BATCH)
    with site.worker(MAILGLASS_BATCH_SIZE="10") as process:
        task_id = site.send()
        wait_until(lambda: site.count_links() > 0, PATIENCE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert site.result(task_id)["linked"] == 30


def test_no_connection_is_shared_across_the_fork(site):
    """The pool of an engine was used before the fork; each child opens its own connections."""
    with site.worker(app="worker", WORKER_POOLED="1"):
        answers = [site.result(site.client.send_task("backend").id) for _ in range(6)]
        assert site.result(site.send(queue="celery"))["status"] == "ok"
    assert all(backend != parents for _, backend, parents in answers)
    assert len({child for child, _, _ in answers}) == len({backend for _, backend, _ in answers})


def test_a_worker_whose_queues_leave_our_tasks_out_says_so(site):
    with site.worker("-Q", "mailglass_reconcile"):
        assert site.count_in_log("does not consume 'mailglass_maintenance'") == 1
        assert site.count_in_log("does not consume") == 1


def test_a_worker_that_consumes_the_queue_of_the_schedule_does_not_warn_about_the_route(site):
    """`make_beat_schedule(queue="mail")` for itself, and another database's queue for other workers."""
    with site.worker("-Q", "mail-eu", app="fast_fleet", MAILGLASS_DATABASE_SCHEMA="nowhere"):
        assert site.count_in_log("does not consume") == 0
        assert site.count_in_log("this worker cannot sweep yet") == 1
    with site.worker("-Q", "celery", app="fast_fleet"):
        words = "does not consume 'mail-eu' or 'mail-us', the queue of mailglass_reconcile.tasks.reconcile"
        assert site.count_in_log(words) == 1


def test_a_tick_that_has_expired_is_not_run(site):
    """It was queued while no worker ran, and expired before one started."""
    stale = site.send(expires=0.01)
    fresh = site.send()
    with site.worker(pool="solo"):
        assert site.result(fresh)["status"] == "ok"
        assert site.client.AsyncResult(stale).state in {"REVOKED", "PENDING"}, "RabbitMQ drops it by itself"
        assert len(site.sweep_results()) == 1


def test_a_child_that_records_and_ends_has_published_before(site):
    """Each child ends after one task; the application has none of our tasks, so no signal of Celery's is used."""
    deliveries = [factories.delivery(site.db, f"m-{number}") for number in range(4)]
    with site.redis.pubsub() as updates:
        updates.subscribe(events_channel(factories.TENANT))
        wait_until(updates.get_message, PATIENCE)
        with site.worker("--max-tasks-per-child", "1", "-Q", "celery", app="recording_worker"):
            tasks = [site.client.send_task("record", [f"m-{number}"], queue="celery").id for number in range(4)]
            children = {site.result(task) for task in tasks}
            assert len(children) == len(tasks)
            wait_until(lambda: not children & {child.pid for child in psutil.process_iter()}, PATIENCE)
        messages = [message for _ in deliveries if (message := updates.get_message(timeout=PATIENCE))]
    assert sorted(json.loads(message["data"])["delivery_id"] for message in messages) == sorted(deliveries)
