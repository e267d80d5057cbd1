"""Faults of Celery in a running installation, one at a time: the doctor names each, and its remedy fixes it."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

import commands
import processes
from faults.servers import postgres
from installation import QUEUE, Site
from mailglass_reconcile.schedule import PRUNE_TASK, SWEEP_TASK
from mailglass_reconcile.testing import servers
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow]

WHILE_IT_LINKS = "LOCK TABLE mailglass_open_orphans IN EXCLUSIVE MODE"
"""Holds a sweep up, and not the doctor, which only reads."""


def findings(site: Site, **environment: str) -> dict[str, list[dict[str, str]]]:
    """Return the findings of the command in the installation's environment, by check."""
    result = commands.run_forked(site.db, "doctor", "--json", **{**site.environment, **environment})
    assert result.stdout, result.stderr
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    has_error = any(row["status"] == "error" for findings_of_check in by_check.values() for row in findings_of_check)
    assert result.returncode == int(has_error)
    return by_check


def states(by_check: dict[str, list[dict[str, str]]], check: str) -> set[str]:
    """Return the statuses of one check's findings."""
    return {row["status"] for row in by_check[check]}


def well(by_check: dict[str, list[dict[str, str]]]) -> bool:
    """Return True if there is no error and no warning."""
    return {row["status"] for findings_of_check in by_check.values() for row in findings_of_check} == {"ok"}


@contextmanager
def frozen(process_id: int) -> Iterator[None]:
    """Stop a process with SIGSTOP, like a machine that hangs, while the block runs."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


def test_no_worker_and_then_one(site: Site) -> None:
    """Without a worker, a waiting task is counted; with one, all is well and the exit code is 0."""
    site.client.send_task(SWEEP_TASK, queue=QUEUE)
    result = findings(site)
    assert (states(result, "worker"), "queues" in result) == ({"error"}, False), "one cause is one finding"
    assert f"1 message waits in the queue {QUEUE} of {SWEEP_TASK}" in result["worker"][0]["message"]
    with site.worker():
        wait_until(lambda: well(findings(site)), PATIENCE)


RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status)
SELECT finished - interval '1 second', finished, 'full', 'beat', 'ok'
  FROM (SELECT now() AT TIME ZONE 'UTC' - interval '40 minutes' AS finished) AS run
"""


def test_only_beat_is_left_where_workers_wait_for_tasks(site: Site) -> None:
    """Neither "run the doctor where the worker runs" nor "run a sweep" would lead to it."""
    with site.worker():
        wait_until(lambda: states(findings(site), "queues") == {"ok"}, PATIENCE)
        for statement, step in (
            ("SELECT 1", "beat sweeps at each fifth minute; if it has not by then, start it, exactly once:"),
            (RUN, "beat does not run, because worker, broker and queues are well: start it:"),
        ):
            site.db.run(statement)
            (late,) = findings(site)["sweeps"]
            assert late["status"] == "error"
            assert late["remedy"] == f"{step} `celery -A mailglass_reconcile beat`"


AGED = "UPDATE mailglass_reconcile_runs SET finished_at = finished_at - interval '15 minutes'"


def test_a_manual_sweep_does_not_hide_that_celery_runs_none(site: Site) -> None:
    """Cron, which has swept for an hour, does: then no worker is needed."""
    site.db.run(RUN)
    for _ in range(3):
        commands.run_forked(site.db, "sweep", **site.environment)
        result = findings(site)
        assert (states(result, "sweeps"), states(result, "worker")) == ({"ok"}, {"error"})
        site.db.run(AGED)
    commands.run_forked(site.db, "sweep", **site.environment)
    assert findings(site)["celery"][0]["message"] == "Celery does not run the sweeps here"


def test_a_first_manual_sweep_does_not_hide_that_a_new_celery_runs_none(site: Site) -> None:
    """Beat has not queued a run yet, but the schedule of the application's app says that it should."""
    commands.run_forked(site.db, "sweep", **site.environment)
    assert states(findings(site, MAILGLASS_IMPORTS="worker"), "worker") == {"error"}
    assert "worker" not in findings(site), "cron may have swept"
    (Path(site.log.parent) / "unusable.py").write_text(
        "from celery import Celery\napp = Celery('unusable')\napp.config_from_object('no_such_module')\n"
    )
    path = os.pathsep.join([str(site.log.parent), site.environment["PYTHONPATH"]])
    result = findings(site, MAILGLASS_IMPORTS="unusable", PYTHONPATH=path)
    assert states(result, "celery") == {"error"}


POISON = {
    "body": "",
    "content-type": "application/data",
    "content-encoding": "binary",
    "headers": {"task": SWEEP_TASK, "id": "1", "lang": "py"},
    "properties": {
        "body_encoding": "base64",
        "delivery_tag": "1",
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
    },
}
"""A message that any client of Redis can push, and that Celery cannot read."""


def test_a_message_that_ends_each_worker_is_removed_by_the_remedy(site: Site) -> None:
    """Celery puts it back when it ends, so the next worker ends too."""
    site.redis.rpush(QUEUE, json.dumps(POISON))
    for number in (1, 2):
        with site.worker(until=None):
            wait_until(lambda: site.count_in_log("Unrecoverable error: TypeError") == number, PATIENCE)  # noqa: B023
            wait_until(lambda: site.redis.llen(QUEUE) == 1, PATIENCE)
    remedy = findings(site)["worker"][0]["remedy"]
    assert f"look for it with `redis-cli LRANGE {QUEUE} 0 -1`" in remedy
    assert f"remove it with `redis-cli LREM {QUEUE} 0 MESSAGE`" in remedy
    assert f"`redis-cli DEL {QUEUE}`, because only ours are there" in remedy
    assert "let cron run `mailglass-reconcile sweep`" in remedy
    [message] = site.redis.lrange(QUEUE, 0, -1)
    assert site.redis.lrem(QUEUE, 0, message) == 1
    with site.worker():
        wait_until(lambda: states(findings(site), "worker") == {"ok"}, PATIENCE)


def test_messages_of_others_are_not_deleted_by_a_remedy(site: Site) -> None:
    """An application's own queue has its tasks too."""
    site.send(queue="celery")
    remedy = findings(site, MAILGLASS_IMPORTS="worker")["worker"][0]["remedy"]
    assert "`redis-cli LREM celery 0 MESSAGE`; meanwhile" in remedy
    assert "DEL" not in remedy


def test_a_worker_that_does_not_consume_our_queues(site: Site) -> None:
    """The worker answers, but the queue with a message has no consumer; a second worker with -Q consumes it."""
    site.client.send_task(SWEEP_TASK, queue=QUEUE)
    with site.worker("-Q", "other", pool="solo"):
        result = findings(site)
        [lacking] = [queue for queue in result["queues"] if queue["status"] != "ok"]
        assert (states(result, "worker"), lacking["status"]) == ({"ok"}, "error")
        assert f"`celery -A mailglass_reconcile worker -Q {QUEUE}`" in lacking["remedy"]
        with site.worker("-Q", f"{QUEUE},mailglass_maintenance", pool="solo"):
            wait_until(lambda: states(findings(site), "queues") == {"ok"}, PATIENCE)


def test_an_app_of_one_s_own_that_does_not_know_the_tasks(site: Site) -> None:
    """MAILGLASS_IMPORTS names its module; its workers lack autodiscover_tasks, and its schedule our entries."""
    (site.log.parent / "forgetful.py").write_text(FORGETFUL)
    path = os.pathsep.join([str(site.log.parent), site.environment["PYTHONPATH"]])
    with site.worker(app="forgetful", pool="solo", PYTHONPATH=path):
        result = findings(site, MAILGLASS_IMPORTS="forgetful", PYTHONPATH=path)
        assert (states(result, "worker"), states(result, "queues")) == ({"ok"}, {"error"})
        assert f"do not know {SWEEP_TASK} and {PRUNE_TASK}" in result["queues"][0]["message"]
        assert states(result, "schedule") == {"warning"}
        assert "no entry for sweeps" in result["schedule"][0]["message"]
    with site.worker(app="worker", pool="solo"):
        site.send(queue="celery")
        wait_until(lambda: well(findings(site, MAILGLASS_IMPORTS="worker")), PATIENCE)


def test_a_worker_of_an_app_that_was_not_found_does_the_work(site: Site) -> None:
    """The worker answers and knows the tasks, and does not use the bundled app's queue; that is no fault."""
    with site.worker(app="worker", pool="solo"):
        wait_until(lambda: states(findings(site), "queues") == {"ok"}, PATIENCE)
        assert "nothing waits in the bundled app's queue" in findings(site)["queues"][0]["message"]


def test_the_app_that_runs_the_tasks_is_named_where_it_is_not_loaded(site: Site) -> None:
    """Nobody is told to start a worker or a beat of the bundled app, which would take the tasks of others."""
    with site.worker(app="worker", pool="solo"):
        site.send(queue="celery")
        wait_until(lambda: site.db.rows("SELECT app FROM mailglass_reconcile_runs") == [("adopter",)], PATIENCE)
    (unloaded,) = findings(site)["celery"]
    assert unloaded["status"] == "warning"
    assert "your Celery app adopter runs the tasks" in unloaded["message"]
    site.db.run(RUN.replace("'beat'", "'call'"))
    site.db.run("UPDATE mailglass_reconcile_runs SET finished_at = finished_at - interval '3 hours'")
    result = findings(site)
    assert states(result, "sweeps") == {"error"}
    assert "celery -A" not in str(result)
    assert findings(site, MAILGLASS_IMPORTS="worker")["worker"][0]["remedy"].endswith("`celery -A worker worker`")


def test_a_remedy_starts_the_app_that_was_found_and_none_of_its_queues(site: Site) -> None:
    """The bundled app's worker would consume, and drop, the tasks in an application's queue."""
    result = findings(site, MAILGLASS_IMPORTS="worker")
    assert result["worker"][0]["remedy"] == "start a worker: `celery -A worker worker`"


FORGETFUL = """
import os
from celery import Celery
app = Celery("forgetful", broker=os.environ["MAILGLASS_REDIS_URL"])
"""


def test_a_busy_worker_with_the_pool_solo_is_not_called_absent(site: Site) -> None:
    """It does not answer while it sweeps, but the lock shows that it does."""
    site.add(1)
    with site.held_up(WHILE_IT_LINKS) as waiting, site.worker(pool="solo") as worker:
        site.send()
        wait_until(waiting, PATIENCE)
        with frozen(worker.pid):  # or the sweep would give up after its lock_timeout
            result = findings(site)
    assert (result["worker"][0]["status"], "is sweeping" in result["worker"][0]["message"]) == ("warning", True)


@pytest.mark.parametrize("broker", ["redis://:canary@127.0.0.1:1/0", "amqp://ada:canary@127.0.0.1:1//"])
def test_a_broker_that_is_away(site: Site, broker: str) -> None:
    """The finding has the cause and the setting, and no password."""
    result = findings(site, CELERY_BROKER_URL=broker)
    assert (states(result, "broker"), "worker" in result) == ({"error"}, False)
    assert "127.0.0.1, port 1" in result["broker"][0]["message"]
    assert "nothing listens there" in result["broker"][0]["message"]
    assert "CELERY_BROKER_URL" in result["broker"][0]["remedy"]
    assert "canary" not in str(result)
    assert "ada" not in str(result["broker"])


def test_the_report_is_there_in_seconds_though_every_server_hangs(site: Site) -> None:
    """Postgres, Redis and the broker accept connections and never answer."""
    with postgres() as server, servers.redis() as url, redis.Redis.from_url(url) as client:
        ids = [server._process.pid, client.info("server")["process_id"]]
        environment = {"MAILGLASS_DATABASE_URL": server.url, "MAILGLASS_REDIS_URL": url}
        with frozen(ids[0]), frozen(ids[1]):
            result = findings(site, **environment)
    assert {"error"} == states(result, "database") == states(result, "redis")
    assert "broker" not in result, "it is the same Redis"
    cause = r"Timeout reading from \S+"  # redis-py 8.2 names the server there
    assert re.search(
        f"{cause}; links are made, but not broadcast; cannot connect to the broker", result["redis"][0]["message"]
    )


def test_without_celery_the_rest_is_checked(site: Site) -> None:
    """The remedy names cron."""
    code = (
        "import sys; sys.modules['celery'] = sys.modules['celery_singleton'] = None;"
        "from mailglass_reconcile.cli import main; main()"
    )
    result = processes.run(["-c", code, "doctor", "--json"], site.environment, forked=False)
    findings = json.loads(result.stdout)["findings"]
    assert [finding["check"] for finding in findings if finding["status"] == "error"] == ["sweeps"], (
        "nothing has run yet"
    )
    assert "cron" in findings[0]["remedy"]
    assert result.returncode == 1
