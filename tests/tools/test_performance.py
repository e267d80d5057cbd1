"""The benchmark: each part runs, compares equal work, and measures the orphans that it names."""

import datetime as dt
import json
import os
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

import invariants
import mailglass_reconcile
import processes
from bench import hand_written, statements, worker
from bench.filling import ANOTHER_TENANTS, NOBODYS, fill
from bench.results import take_turns

pytestmark = pytest.mark.version_independent

ROOT = Path(__file__).parents[2]
AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

MANY = 1_100
"""Messages with more orphans than a sweep probes for one by one."""
STATES = [
    ("unmatched", "spread", {"messages": MANY, **NOBODYS}),
    ("unmatched", "in order", {"messages": MANY, **NOBODYS}),
    ("unmatched", "tied", {"messages": MANY, **NOBODYS}),
    ("tenant_mismatch", "tied", {"deliveries": 50, "messages": 50, **ANOTHER_TENANTS}),
    ("ambiguous", "in order", {"deliveries": 50, "copies": 2, "messages": 50}),
    ("linked", "in order", {"deliveries": 50, "messages": 50}),
]
"""The state in which a sweep finds the orphans, their layout, and what `fill` is asked for."""


@pytest.mark.slow
@pytest.mark.parametrize(("state", "layout", "rows"), STATES)
def test_the_orphans_of_each_layout_are_in_the_state_that_is_measured(db, state, layout, rows):
    """A sweep counts their states; tied ones have at most ten times, and ids in order follow the arrivals."""
    fill(db.url, layout=layout, **rows)
    times, falls = db.rows(
        "SELECT count(DISTINCT arrived_at), count(*) FILTER (WHERE event_id < before) FROM"
        " (SELECT *, lag(event_id) OVER (ORDER BY arrived_at) AS before FROM mailglass_open_orphans) AS o"
    )[0]
    assert (times <= 10) == (layout == "tied")
    assert (falls == 0) == (layout == "in order") or layout == "spread"
    assert mailglass_reconcile.reconcile().as_dict()[state] == 2 * rows["messages"]
    assert statements.run_join(db.url) >= 0
    db.broken.add("I6")


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


def test_both_sides_take_turns_and_neither_is_always_first():
    turns = []
    take_turns(3, lambda number: turns.append(f"ours {number}"), lambda number: turns.append(f"other {number}"))
    assert turns == ["ours 0", "other 0", "other 1", "ours 1", "ours 2", "other 2"]


def run_benchmark(tmp_path, *arguments):
    """Run the benchmark to its end; its processes are forked, which would change what it measures."""
    command = processes.forking("import runpy; runpy.run_module('bench', run_name='__main__', alter_sys=True)")
    with processes.start([*command, *arguments], {**os.environ, "TMPDIR": str(tmp_path)}, cwd=ROOT) as process:
        code = process.wait(240)
    return code, process


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("parts", "options"), [("calls", ["--against", "HEAD"]), ("calls sweep backlog sizing", [])])
def test_the_benchmark_writes_where_its_user_says(tmp_path, parts, options):
    output = tmp_path / "figures.json"
    output.write_text('{"kept": {"figures": []}}')
    code, process = run_benchmark(tmp_path, "--quick", "--output", str(output), *options, *parts.split())
    assert code == 0, process.stderr[-2_000:]
    document = json.loads(output.read_text())
    assert list(document) == ["kept", *parts.split()]
    for part in parts.split():
        assert " cores, bare SQL links " in document[part]["about"]
        assert all(figure["value"] >= 0 for figure in document[part]["figures"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "no such part: nope; there are calls, sweep, backlog, sizing"),
        (["--against", "HEAD", "sizing"], "no such part: sizing; there are calls, sweep"),
        (["--output", "/nowhere/figures.json"], "there is no folder /nowhere"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_measured(tmp_path, arguments, words):
    code, process = run_benchmark(tmp_path, *arguments)
    assert (code, words in process.stderr) == (2, True)
