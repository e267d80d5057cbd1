"""The benchmark: each part runs, compares equal work, and has a correct checker."""

import datetime as dt
import json
import math
import os
import re
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import factories
import invariants
import mailglass_reconcile
import processes
from bench import call_process, hand_written, page, proxy, statements
from bench.checker import check
from bench.figures import Figure
from bench.filling import ANOTHER_TENANTS, NOBODYS, fill
from bench.load_generator import EARLY_SHARE, OVERLAPPING_SHARE, Load, plan
from marking import slow_unless

pytestmark = pytest.mark.version_independent

ROOT = Path(__file__).parents[2]
AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

TAMPERING = [
    ("without exactly one reconciled", "UPDATE mailglass_events SET type = 'sent' WHERE type = 'reconciled'"),
    ("without exactly one reconciled", "DELETE FROM mailglass_events WHERE type = 'reconciled'"),
    ("under other keys", 'UPDATE mailglass_events SET metadata = \'{"reconciled_from_event_id": "one"}\''),
    ("without a delivery", "UPDATE mailglass_events SET delivery_id = gen_random_uuid() WHERE type = 'reconciled'"),
    ("open orphans left", "INSERT INTO mailglass_open_orphans SELECT gen_random_uuid(), 'acme', now()::timestamp"),
    ("not the fold", "UPDATE mailglass_deliveries SET delivered_at = NULL"),
    ("not the fold", "UPDATE mailglass_deliveries SET last_event_type = 'dispatched'"),
]

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


@pytest.mark.parametrize(
    ("words", "sql"), slow_unless(TAMPERING[:2].__contains__, TAMPERING), ids=lambda value: str(value)[:40]
)
def test_a_run_that_lost_or_doubled_an_event_has_no_figures(db, words, sql):
    """The checker accepts a right database, and names what each statement has broken."""
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
    """Different processes record each send and its two events, a quarter of them before the send commits."""
    load = Load("run", 2_000, 100)
    jobs = [plan(load, part, 2) for part in (0, 1)]
    sends = {job.message: (part, job) for part in (0, 1) for job in jobs[part] if job.kind == "send"}
    events = [(part, job) for part in (0, 1) for job in jobs[part] if job.kind == "event"]
    assert len(sends) == 2_000
    assert len({(job.message, job.number) for _, job in events}) == len(events) == 4_000
    assert all(sends[job.message][0] != part for part, job in events)
    early = [job for _, job in events if job.at < sends[job.message][1].at + sends[job.message][1].open_seconds]
    assert len(early) / len(events) == pytest.approx(EARLY_SHARE + OVERLAPPING_SHARE, abs=0.02)
    assert sends[1_999][1].at - sends[0][1].at == pytest.approx(40, abs=0.1)


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
    """After the hand-written call and ours, the delivery's columns are the same."""
    states = []
    for make, id_ in ((call_process.baseline_call(kind), "by-hand"), (call_process.package_call(kind), "package")):
        with Session(db.engine) as session:
            if kind == "webhook":
                hand_written.send(session, call_process.TENANT, [id_], [f"{id_}@example.com"], AT)
            make(session, id_)
            session.commit()
        states += db.rows(
            "SELECT last_event_type, last_event_at, delivered_at, dispatched_at, terminal, provider"
            " FROM mailglass_deliveries WHERE provider_message_id = :id",
            id=id_,
        ) or [("an orphan", db.value("SELECT count(*) FROM mailglass_open_orphans"))]
    assert states[0] == states[1] or states == [("an orphan", 1), ("an orphan", 2)]
    db.broken.update(invariants.ALL)


def test_the_proxy_counts_round_trips_and_delays_each(db):
    """A hand-written webhook takes three, and two for BEGIN and COMMIT, on an open connection; each takes longer."""
    by_hand_webhook = call_process.baseline_call("webhook")
    with Session(db.engine) as session:
        hand_written.send(session, call_process.TENANT, ["one", "two"], ["one@example.com", "two@example.com"], AT)
        session.commit()
    with proxy.in_front_of(db.url, delay=0.03) as through:
        engine = sa.create_engine(sa.make_url(through.url(db.url)).set(drivername="postgresql+psycopg"))
        for id_ in ("one", "two"):
            started_at = time.monotonic()
            with Session(engine) as session:
                by_hand_webhook(session, id_)
                session.commit()
            seconds = time.monotonic() - started_at
            counts = proxy.counts(through.control)
        engine.dispose()
    assert counts == proxy.Counts(round_trips=3, begins_and_ends=2, background=0, connections=0)
    assert seconds > 0.03 * (3 + 2)
    db.broken.update(invariants.ALL)


def test_the_pages_show_what_was_measured():
    """All rows of `figures.json` are in `figures.md`, and a few on the page that quotes them."""
    parts = page.read(ROOT)
    assert (ROOT / page.RESULTS / "figures.json").read_text() == page.to_json(parts)
    every = (ROOT / page.RESULTS / "figures.md").read_text()
    assert [name for name, part in parts.items() if page.table(part) not in every] == []
    text = (ROOT / page.PAGE).read_text()
    assert [name for name in page.SELECTED if page.selected_table(name, parts[name]) not in text] == []
    assert [
        name
        for name, rows in page.SELECTED.items()
        if page.selected_table(name, parts[name]).count("\n| ") != len(rows) + 1
    ] == []


def test_no_generated_block_of_a_page_is_empty():
    """A marker without a table would be a part that was not measured."""
    for match in re.finditer(
        r"<!-- (\w+): written by python -m bench -->\n(.*?)<!-- end -->", (ROOT / page.PAGE).read_text(), re.S
    ):
        assert match[2].strip(), match[1]


def test_a_number_on_several_pages_is_the_measured_one():
    """Other pages round the costs of a call and a message, and a sweep's delay."""
    parts = page.read(ROOT)
    calls = {figure["name"]: Figure(**figure) for figure in parts["calls"]["figures"]}
    webhook, send = calls["a webhook whose delivery exists"], calls["a send"]
    sizing = {figure["name"]: figure["value"] for figure in parts["sizing"]["figures"]}
    disk = sizing["a million messages a day, kept 30 days: on disk"] / 30
    milliseconds = [round(float(item.package.removesuffix(" ms"))) for item in (webhook, send)]
    cost = f"a webhook costs about {milliseconds[0]} ms and a send about {milliseconds[1]} ms"
    ratios = f"{webhook.value:.1f} and {send.value:.1f} times"
    latency = {figure["name"]: math.ceil(figure["value"] / 100) / 10 for figure in parts["latency"]["figures"]}
    follow, recent = (f"99 % within {latency[f'{name}: p99']} s" for name in ("follow, every 0.1 s", "recent=1.0"))
    for name, words in {
        "README.md": [cost, ratios, f"{disk:.1f} kB"],
        "docs/performance.md": [ratios, f"{disk:.1f} kB"],
        "docs/sweeps.md": [follow, recent],
        "docs/deploy.md": [f"{disk:.1f} kB"],
    }.items():
        text = " ".join((ROOT / name).read_text().split()).lower()
        assert [word for word in words if word.lower() not in text] == [], name


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["calls", "handlers receiving", "layouts sweep"])
def test_the_benchmark_runs_through(tmp_path, parts):
    """With `--quick` it does not change the page, and writes its figures into a folder of their own.

    Its processes are forked, which would change what it measures.
    """
    before = (ROOT / page.RESULTS / "figures.md").read_text()
    command = processes.forking("import runpy; runpy.run_module('bench', run_name='__main__', alter_sys=True)")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with processes.start([*command, "--quick", *parts.split()], environment, cwd=ROOT) as process:
        assert process.wait(240) == 0, process.stderr[-2_000:]
    results = Path(re.search(r"written to (\S+)/figures\.md", process.stdout)[1])
    document = json.loads((results / "figures.json").read_text())
    for part in parts.split():
        assert document[part]["command"] == f"python -m bench --quick {part}"
        assert re.search(r" cores, bare SQL links [\d,]+ events/s \(load", document[part]["machine"])
        assert page.table(document[part]) in (results / "figures.md").read_text()
    assert (ROOT / page.RESULTS / "figures.md").read_text() == before
