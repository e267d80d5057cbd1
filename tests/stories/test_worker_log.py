"""A worker's log: one line for an event of interest, none for nothing, and never a line that a stranger forges."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.signals import beat_init, celeryd_after_setup

from installation import Site
from mailglass_reconcile import tasks
from mailglass_reconcile.schedule import PRUNE_TASK, SWEEP_TASK
from mailglass_reconcile.store.tables import runs
from mailglass_reconcile.sweep import run_log
from mailglass_reconcile.sweep.result import SweepResult
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.python_dependent

UNMIGRATED = {"MAILGLASS_DATABASE_SCHEMA": "nowhere"}
REMEDY = "need MAILGLASS_DATABASE_SCHEMA"
UNCONFIGURED = {"MAILGLASS_DATABASE_URL": ""}
UNREACHABLE_DATABASE = {"MAILGLASS_DATABASE_URL": "postgresql://127.0.0.1:1/app"}


def lines_with(site: Site, words: str) -> list[str]:
    """Return the log's lines that have these words."""
    return [line for line in site.log.read_text().splitlines() if words in line]


def lines_about(site: Site, name: str) -> list[str]:
    """Return the log's lines about a task's missing schema."""
    return [line for line in lines_with(site, REMEDY) if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["info", "warning"])
def test_a_sweep_or_a_prune_that_cannot_start_is_one_line(site, level):
    """No log level has a traceback; the caller gets the error as the result."""
    with site.worker("-l", level, app="worker", until="READY", **UNMIGRATED):
        task_ids = [site.send(queue="celery"), site.client.send_task(PRUNE_TASK, queue="celery").id]
        states = [site.client.AsyncResult(task_id) for task_id in task_ids]
        for state in states:
            state.get(timeout=PATIENCE, interval=0.05, propagate=False)
        wait_until(lambda: all(lines_about(site, name) for name in (SWEEP_TASK, PRUNE_TASK)))
    assert [state.state for state in states] == ["FAILURE"] * 2
    assert site.count_in_log("Traceback") == site.count_in_log("unexpected") == 0
    assert [len(lines_about(site, name)) for name in (SWEEP_TASK, PRUNE_TASK)] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (UNMIGRATED, REMEDY),
        (UNCONFIGURED, "MAILGLASS_DATABASE_URL is not set"),
        (UNREACHABLE_DATABASE, "127.0.0.1, port 1, database app: nothing listens there"),
        ({}, None),
    ],
)
def test_a_worker_says_once_when_it_starts_that_it_cannot_sweep(site, environment, words):
    """The database lacks our tables, or cannot be reached; a complete installation logs nothing."""
    with site.worker(**environment):
        result = lines_with(site, "cannot sweep")
        assert site.count_in_log("Traceback") == 0
    assert len(result) == (words is not None)
    assert all(words in line and "WARNING" in line for line in result)


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "redis+socket:///run/redis.sock?password=pa%2Fss&virtual_host=1",
        "redis+socket://:pa%2Fss@/run/redis.sock?virtual_host=1",
        "redis://localhost:6379/0?username=me&password=pa%2Fss",
        "rediss://me:pa%2Fss@localhost:6379/0",
    ],
)
def test_celery_report_prints_no_password(site, url):
    """`celery report` is pasted into bug reports; our password is put where it hides passwords."""
    report = site.run_python("-m", "celery", "-A", "mailglass_reconcile", "report", MAILGLASS_REDIS_URL=url)
    assert "broker_url: 'redis" in report
    assert not re.search("pa(%2F|/)ss", report)


@pytest.mark.slow
def test_a_worker_without_our_queues_does_not_ask_for_a_database(site):
    """It will never sweep."""
    with site.worker("-Q", "other", **UNCONFIGURED):
        assert site.count_in_log("cannot sweep") == 0


@pytest.mark.slow
def test_at_info_a_sweep_that_did_something_is_one_readable_line_and_one_that_did_not_is_none(site):
    """The line has the counts rather than the fields of a dictionary."""
    site.add(2)
    with site.worker(pool="solo"):
        for _ in range(2):
            site.result(site.send())
        site.result(site.call(tenant_id="acme"))
    (line,) = lines_with(site, "swept")
    assert re.search(r"swept all tenants: linked 2 of 2 open events in \d+ ms$", line)


def test_a_worker_and_beat_leave_all_loggers_alone():
    """Celery's loggers are the application's."""
    loggers = [logging.getLogger(name) for name in ("", "celery.app.trace", *logging.root.manager.loggerDict)]

    def state():
        return [(logger.name, logger.level, list(logger.filters), list(logger.handlers)) for logger in loggers]

    before = state()
    worker = SimpleNamespace(app=Celery("shop", broker="memory://", set_as_current=False))
    for signal in (beat_init, celeryd_after_setup):
        signal.send(sender=None, instance=worker)
    assert state() == before


@pytest.mark.slow
def test_a_group_with_a_duplicate_ends(site):
    """Each member has a result of its own, whichever swept."""
    with site.worker("-c", "2", MAILGLASS_BATCH_SIZE="10"):
        first, second = json.loads(site.run_python("-c", GROUP))
    assert {"ok"} <= {first["status"], second["status"]} <= {"ok", "duplicate"}


GROUP = """
import json
from celery import group
from mailglass_reconcile.celery import app
from mailglass_reconcile.tasks import reconcile
print(json.dumps(group(reconcile.s(), reconcile.s()).apply_async().get(timeout=30, interval=0.05)))
"""


@pytest.mark.slow
def test_a_hostile_tenant_argument_is_swept_and_neither_a_line_of_its_own_nor_a_megabyte_of_result(site):
    """A newline, an escape sequence and a megabyte are swept as given, find nothing, and are escaped and cut."""
    hostile = "acme\n[2026-01-01 00:00:00: ERROR] FORGED \x1b[31m"
    with site.worker(pool="solo"):
        escaped = site.result(site.send(hostile))
        cut = site.result(site.send("x" * 1_000_000))
        plain = site.result(site.send("ä b"))
    assert (escaped["status"], escaped["scanned"]) == ("ok", 0)
    assert escaped["tenant_id"] == r"acme\n[2026-01-01 00:00:00: ERROR] FORGED \x1b[31m"
    assert cut["tenant_id"] == "x" * 1_000 + "…"
    assert plain["tenant_id"] == "ä b"
    assert "\x1b" not in site.log.read_text()
    assert not [line for line in lines_with(site, "FORGED") if line.startswith("[2026-01-01")]
    assert max(map(len, site.log.read_text().splitlines())) < 5_000


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (SweepResult(tenant_id="a\nb", scanned=3, linked=1, unmatched=2), r"swept tenant 'a\nb': linked 1 of 3"),
        (SweepResult(scanned=3, linked=1, unmatched=2, duration_ms=7), "in 7 ms; 2 unmatched"),
        (SweepResult(scanned=1, linked=1, published=0, publish_failed=2), "2 broadcasts not sent"),
        (
            SweepResult(scanned=1, failed=1, remaining=1, status="partial"),
            "1 failed; partial, 1 eligible event remains",
        ),
        (SweepResult(scanned=2, unmatched=2), None),
        (SweepResult(), None),
    ],
)
def test_the_line_of_a_sweep(result, line, caplog):
    """It has what was linked, what was not and why, and what was lost."""
    counts = {name: getattr(result, name, 0) for name in runs.COUNTS}
    run = runs.Run("full", "call", result.shown_tenant, result.status, counts, result.remaining)
    with caplog.at_level(logging.INFO), run_log.reporting("full", lambda _: run):
        pass
    assert [line in record.getMessage() for record in caplog.records] == ([True] if line else [])


def test_the_result_shows_a_tenant_argument_in_one_line_and_cut(db):
    """The task's return value has it, without a worker."""
    assert tasks.reconcile("a\nb\x1b")["tenant_id"] == r"a\nb\x1b"
    assert tasks.reconcile("x" * 1_001)["tenant_id"] == "x" * 1_000 + "…"
    assert tasks.reconcile("ä b")["tenant_id"] == "ä b"
