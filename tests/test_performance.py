"""The benchmark of latency, cost and backlog: that it runs, and that its checker and its simulation are right."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import factories
import invariants
import mailglass_reconcile
from bench.performance.checker import check
from bench.performance.outage import simulate
from bench.performance.plan import EARLY, OVERLAPPING, Load, plan

ROOT = Path(__file__).parent.parent

TAMPERING = [
    ("without exactly one reconciled", "UPDATE mailglass_events SET type = 'sent' WHERE type = 'reconciled'"),
    ("without exactly one reconciled", "DELETE FROM mailglass_events WHERE type = 'reconciled'"),
    ("under other keys", 'UPDATE mailglass_events SET metadata = \'{"reconciled_from_event_id": "one"}\''),
    ("without a delivery", "UPDATE mailglass_events SET delivery_id = gen_random_uuid() WHERE type = 'reconciled'"),
    ("open orphans left", "INSERT INTO mailglass_open_orphans SELECT gen_random_uuid(), 'acme', now()::timestamp"),
    ("not the fold", "UPDATE mailglass_deliveries SET delivered_at = NULL"),
    ("not the fold", "UPDATE mailglass_deliveries SET last_event_type = 'dispatched'"),
]


@pytest.mark.parametrize(("words", "sql"), TAMPERING, ids=lambda value: str(value)[:40])
def test_a_run_that_lost_or_doubled_an_event_has_no_figures(db, words, sql):
    """The checker lets a right database pass, and names what each statement has broken."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    factories.orphan(db, factories.postmark("one"), type="opened")
    assert mailglass_reconcile.reconcile().linked == 2
    check(db.url, "a right run")
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(sql)
    with pytest.raises(SystemExit, match=f"(?s)a wrong run: .*{words}"):
        check(db.url, "a wrong run")
    db.broken.update(invariants.ALL)


def test_the_load_is_what_the_page_says():
    """Each send once and its two events, by different processes; a quarter of them before the send commits."""
    load = Load("run", 2_000, 100)
    jobs = [plan(load, part, 2) for part in (0, 1)]
    sends = {job.message: (part, job) for part in (0, 1) for job in jobs[part] if job.kind == "send"}
    events = [(part, job) for part in (0, 1) for job in jobs[part] if job.kind == "event"]
    assert len(sends) == 2_000
    assert len({(job.message, job.number) for _, job in events}) == len(events) == 4_000
    assert all(sends[job.message][0] != part for part, job in events)
    early = [job for _, job in events if job.at < sends[job.message][1].at + sends[job.message][1].open_seconds]
    assert len(early) / len(events) == pytest.approx(EARLY + OVERLAPPING, abs=0.02)
    assert sends[1_999][1].at - sends[0][1].at == pytest.approx(40, abs=0.1)


def test_a_backlog_is_worked_off_by_ticks_of_240_seconds():
    """100 a second for an hour, and 1,000 more than arrive are linked: 240 s, a pause of 60 s, and 120 s."""
    backlog, minutes = simulate(100, 1_100)
    assert max(orphans for _, orphans in backlog) == 360_000
    assert minutes == pytest.approx(7, abs=0.05)


@pytest.mark.slow
def test_the_benchmark_runs_through(tmp_path):
    """With `--quick` it leaves the page alone, and writes the figures of the part that was asked for elsewhere."""
    before = (ROOT / "docs" / "performance.md").read_text()
    command = [sys.executable, "-m", "bench.performance", "--quick", "inserts"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    docs = Path(re.search(r"written to (\S+)/performance\.md", done.stdout)[1])
    figures = {
        each["name"]: each for each in json.loads((docs / "performance/figures.json").read_text())["inserts"]["figures"]
    }
    assert figures["an orphan, INSERT: Postgres, more than without"]["value"] > 0
    assert figures["an event with its delivery, INSERT: WAL, more than without"]["value"] < 50
    assert "| an orphan, INSERT: WAL |" in (docs / "performance.md").read_text()
    assert (ROOT / "docs" / "performance.md").read_text() == before
