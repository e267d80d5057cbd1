"""The benchmark: each part runs, and compares equal work."""

import datetime as dt
import json
import os
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

import invariants
import processes
from bench import hand_written, worker

pytestmark = pytest.mark.version_independent

ROOT = Path(__file__).parents[2]
AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize("kind", ["webhook", "send", "early"])
def test_compared_calls_do_the_same_work(db, kind):
    """After the hand-written call and ours, the delivery's columns and events are the same."""
    states = []
    call = "send" if kind == "send" else "webhook"
    for name, id_ in ((f"{call} by hand", "by-hand"), (call, "package")):
        with Session(db.engine) as session:
            if kind == "webhook":
                hand_written.send(session, worker.TENANT, [id_], [f"{id_}@example.com"], AT)
            worker.CALLS[name](session, [id_])
            session.commit()
        states += db.rows(
            "SELECT last_event_type, last_event_at, delivered_at, dispatched_at, terminal, provider,"
            " (SELECT array_agg(type ORDER BY type) FROM mailglass_events WHERE delivery_id = d.id)"
            " FROM mailglass_deliveries AS d WHERE provider_message_id = :id",
            id=id_,
        ) or [("an orphan", db.value("SELECT count(*) FROM mailglass_open_orphans"))]
    assert states[0] == states[1] or states == [("an orphan", 1), ("an orphan", 2)]
    db.broken.update(invariants.ALL)


@pytest.mark.nightly
@pytest.mark.long
def test_every_part_of_the_benchmark_writes_its_figures_beside_those_that_are_kept(tmp_path):
    """Its processes are forked, which would change what it measures."""
    output, parts = tmp_path / "figures.json", ["calls", "sweep", "backlog", "growth", "sizing"]
    output.write_text('{"kept": {"figures": []}}')
    command = processes.forking("import runpy; runpy.run_module('bench', run_name='__main__', alter_sys=True)")
    options = ["--quick", "--output", str(output), *parts]
    with processes.start([*command, *options], {**os.environ, "TMPDIR": str(tmp_path)}, cwd=ROOT) as process:
        code = process.wait(240)
    assert code == 0, process.stderr[-2_000:]
    document = json.loads(output.read_text())
    assert list(document) == ["kept", *parts]
    for part in parts:
        assert " cores, bare SQL links " in document[part]["about"]
        assert all(figure["value"] >= 0 for figure in document[part]["figures"])
