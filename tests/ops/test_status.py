"""`status`, for a person, a machine and an alert."""

import json
import re
from contextlib import suppress
from functools import partial

import jsonschema
import pytest

import commands
import mailglass_reconcile
import sweeping
from factories import TENANT, delivery, delivery_row, insert, insert_pairs, orphan, orphan_row, postmark
from handling import handle
from mailglass_reconcile import reconcile
from mailglass_reconcile.ops import targeted_sweep
from mailglass_reconcile.ops.status import load_findings, load_problems, load_status
from mailglass_reconcile.ops.targeted_sweep import Target
from mailglass_reconcile.store.tables import runs
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.counters import SweepCounters
from meter import before_statements
from recording import event, record

TIME = {"type": "string", "format": "date-time", "pattern": "Z$"}
COUNT = {"type": "integer", "minimum": 0}
SCHEMA = {
    "type": "object",
    "required": ["open", "eligible", "newer", "at_least", "lag_seconds", "as_of", "groups", "last_success",
                 "last_runs", "totals", "triggers", "healthy", "problems"],
    "properties": {
        "open": COUNT,
        "eligible": COUNT,
        "newer": COUNT,
        "at_least": {"type": "boolean"},
        "lag_seconds": {"type": "number", "minimum": 0},
        "as_of": TIME,
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["state", "tenant_id", "provider", "orphans"],
                "properties": {"orphans": COUNT},
            },
        },
        "last_success": {"type": "object", "additionalProperties": TIME},
        "last_runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["finished_at", "kind", "origin", "status", "error", "runs", "scanned", "linked"],
            },
        },
        "totals": {"type": "object", "additionalProperties": COUNT},
        "triggers": {"type": "boolean"},
        "healthy": {"type": "boolean"},
        "problems": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip

AGED = "UPDATE mailglass_reconcile_runs SET finished_at = finished_at - interval '1 hour'"


@pytest.fixture
def command(db):
    """Run `mailglass-reconcile` on the test's database and return its result."""
    return partial(commands.run_unchecked, db)


def test_open_orphans_are_shown_as_the_last_full_sweep_left_them(db):
    """The last sweep has counted already, which takes time on a large backlog; `sweep --dry-run` counts now."""
    insert(db, [], [orphan_row(postmark("m-1")), orphan_row(postmark("m-2"), tenant_id="b")])
    reconcile()
    insert(db, [delivery_row("m-1")], [orphan_row(postmark("m-3")), orphan_row(postmark("m-4"), age_seconds=5)])
    status = load_status(db.database)
    assert (status.open, status.eligible, status.newer) == (3, 2, 1)
    assert {(g["state"], g["tenant_id"]): g["orphans"] for g in status.groups} == {
        ("unmatched", "acme"): 1,
        ("unmatched", "b"): 1,
    }
    assert load_status(db.database, tenant_id="b").eligible == 1
    now = reconciler.prepare(dry_run=True).run()
    assert (now.scanned, now.linked, now.unmatched) == (3, 1, 2)


SWEPT_EARLIER = """
UPDATE mailglass_reconcile_runs
   SET started_at = started_at - interval '200 seconds', finished_at = finished_at - interval '200 seconds',
       covered_until = covered_until - interval '200 seconds'
"""


def test_what_arrived_after_the_window_of_the_last_full_sweep_is_open_although_its_grace_has_ended(db, command):
    """500 events that could be linked were once "0 open events" from the end of their grace to the next sweep."""
    insert(db, [], [orphan_row(postmark("m-1"))])
    reconcile()
    db.run(SWEPT_EARLIER)
    insert_pairs(db, 3, age_seconds=200)
    insert(db, [], [orphan_row(postmark("m-2"), tenant_id="b", age_seconds=5)])
    status = load_status(db.database)
    assert (status.open, status.eligible, status.newer, status.at_least) == (5, 1, 4, False)
    assert status.lag_seconds == pytest.approx(140, abs=5)
    assert status.healthy
    assert [load_status(db.database, tenant_id=tenant).newer for tenant in (TENANT, "b")] == [3, 1]
    assert "\n4 more have arrived since\nthe oldest that could be linked has been open for 2 minutes" in (
        command("status").stdout
    )
    assert reconcile().linked == 3
    status = load_status(db.database)
    assert (status.eligible, status.newer, status.lag_seconds) == (1, 1, 0)


def test_what_arrived_after_a_sweep_and_was_found_to_have_no_delivery_is_not_late(db):
    """A writer has compared it with deliveries already, and stored the state."""
    reconcile()
    db.run(SWEPT_EARLIER)
    insert(db, [], [orphan_row(postmark("m-1"), age_seconds=200)])
    db.run("UPDATE mailglass_open_orphans SET state = 'unmatched'")
    status = load_status(db.database)
    assert (status.newer, status.lag_seconds) == (1, 0)


def test_newer_orphans_are_counted_up_to_a_limit(db, command, set_limits):
    reconcile()
    insert_pairs(db, 4, age_seconds=5)
    set_limits(most_counted=3)
    status = load_status(db.database)
    assert (status.open, status.newer, status.at_least) == (3, 3, True)
    assert "at least 3 more have arrived since" in command("status").stdout


def test_before_the_first_full_sweep_orphans_are_shown_by_what_is_stored_of_them(db):
    """A recent sweep has matched one of two."""
    insert(db, [], [orphan_row(postmark("m-1")), orphan_row(postmark("m-2"))])
    db.run("UPDATE mailglass_open_orphans SET state = 'unmatched' WHERE ctid = '(0,1)'")
    assert {g["state"]: g["orphans"] for g in load_status(db.database).groups} == {"unseen": 1, "unmatched": 1}


def test_before_the_first_full_sweep_orphans_are_counted_by_the_path_that_their_number_makes_cheaper(db, set_limits):
    """A large backlog is counted by one pass over each table, not by a probe for each orphan."""
    set_limits(small_bytes=0, few_orphans=20)
    insert(db, [], [orphan_row(postmark(f"m-{n}")) for n in range(100)])
    paths = []

    def note(_connection, statement, parameters):
        if "of_window" in statement:
            paths.append(parameters["by_scans"])

    with before_statements(db.engine, note):
        assert load_status(db.database).eligible == 100
    assert paths == [True]


@pytest.mark.parametrize("how", ["at its deadline", "by Ctrl-C"])
def test_a_sweep_that_broke_off_is_not_the_last_successful_one(db, monkeypatch, how):
    """The one before it is; a sweep that was refused a row has still tried all orphans."""
    insert(db, [], [orphan_row(postmark(f"m-{n}")) for n in range(3)])
    reconcile()
    good = load_status(db.database).last_success["full"]
    sweep = reconciler.prepare()

    reach = SweepCounters.mark_processed

    def end(counters, groups):
        reach(counters, groups)
        if how == "by Ctrl-C":
            raise KeyboardInterrupt
        sweep.stop()

    insert(db, [], [orphan_row(postmark("m-4"))])
    monkeypatch.setattr(SweepCounters, "mark_processed", end)
    with suppress(KeyboardInterrupt):
        sweep.run()
    status = load_status(db.database)
    assert (status.last_runs[0]["status"], status.last_success["full"]) == ("partial", good)
    db.run("UPDATE mailglass_reconcile_runs SET covered = true, error = NULL WHERE status = 'partial'")
    assert load_status(db.database).last_success["full"] > good


def test_before_the_first_sweep_status_counts_and_says_that_nobody_has_swept(db):
    """`status` may be the first command that somebody tries."""
    insert(db, [], [orphan_row(postmark("m-1"))])
    status = load_status(db.database)
    assert (status.eligible, status.healthy) == (1, False)
    assert status.problems[0].startswith("sweeps: no full sweep of all tenants has run yet")


@pytest.mark.slow
def test_json_keeps_to_its_schema(db, command):
    """Programs read it."""
    insert(db, [delivery_row("m-1")], [orphan_row(postmark(id_)) for id_ in ("m-1", "m-2")])
    assert command("sweep").returncode == 0
    result = command("status", "--json")
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    assert (document["healthy"], document["last_runs"][0]["origin"], document["totals"]["linked"]) == (
        True,
        "command",
        1,
    )


def test_check_is_one_line_and_an_exit_code(db, command):
    """Each problem begins with its check's name, a heading of the page; a sweep by command counts as a success; a
    database that cannot be reached is named on the same line.
    """
    result = command("status", "--check")
    assert (result.returncode, result.stdout.count("\n")) == (1, 1)
    assert result.stdout.startswith("unhealthy: sweeps: no full sweep of all tenants has run yet")
    command("sweep")
    result = command("status", "--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "healthy\n", "")
    orphan(db, postmark("m-1", provider="postmrak"))
    command("sweep")
    result = command("status", "--check")
    assert (result.returncode, result.stdout.count("\n")) == (0, 1)
    said = "healthy, with a warning: key_rules: no rule knows postmrak; did you mean postmark?"
    assert result.stdout.startswith(said)
    unreachable = command("status", "--check", MAILGLASS_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (unreachable.returncode, unreachable.stdout[:11], unreachable.stdout.count("\n")) == (1, "unhealthy: ", 1)


def test_no_sweep_for_two_intervals_is_unhealthy(db):
    """Results count, not processes that are alive."""
    reconcile()
    assert load_problems(db.database) == []
    db.run(AGED)
    assert load_problems(db.database)[0].startswith("sweeps: no full sweep has succeeded for 1 hour (limit 10 minutes)")
    assert load_findings(db.database, 2 * 3_600.0) == []


@pytest.mark.parametrize("way", ["targeted", "of its tenant"])
def test_what_is_linked_between_two_full_sweeps_is_late_no_more(db, way):
    """An operator's targeted sweep, or a sweep of one tenant, links the late events; one link of two is not enough."""
    rows = [orphan_row(postmark(f"m-{n}"), age_seconds=9_000) for n in range(3)]
    insert(db, [delivery_row(f"m-{n}") for n in range(3)], rows)
    db.run("UPDATE mailglass_deliveries SET inserted_at = inserted_at - interval '1 hour'")
    with sweeping.held(db.engine, free=1):
        assert reconcile().skipped == 2
    for expected in ([True], []):
        if way == "targeted":
            assert targeted_sweep.prepare(Target(TENANT), 1).run().linked == 1
        else:
            with sweeping.held(db.engine, free=1):
                assert reconcile(TENANT).linked == 1
        assert ["although its delivery exists" in problem for problem in load_problems(db.database)] == expected
    assert load_status(db.database).lag_seconds == 0


def test_a_sweep_of_one_tenant_is_not_the_last_full_sweep(db):
    """`status` once showed it as that, beside a sentence that none had succeeded for longer."""
    reconcile()
    before = load_status(db.database).last_success["full"]
    reconcile(TENANT)
    assert load_status(db.database).last_success["full"] == before


def test_a_sweep_of_which_the_database_refused_every_link_is_unhealthy(db):
    """If some links succeed, a refused one is a bad row, and the lag reports it if it stays."""
    db.run("ALTER TABLE mailglass_deliveries ADD CONSTRAINT bad CHECK (NOT (terminal AND recipient = 'bad@x.com'))")
    insert(db, [delivery_row("bad", recipient="bad@x.com")], [orphan_row(postmark("bad"))])
    reconcile()
    assert [
        "refused all that the last full sweep tried, 1 link" in problem for problem in load_problems(db.database)
    ] == [True]
    insert_pairs(db, ["good"])
    reconcile()
    assert load_problems(db.database) == []
    db.run("ALTER TABLE mailglass_deliveries DROP CONSTRAINT bad")


def test_stray_events_of_a_wrong_tenant_are_healthy_and_so_are_several_where_others_of_the_tenant_are_attached(db):
    """Where our writers attach webhooks at once, sweeps link nothing. Other tenants' links show nothing."""
    delivery(db, "m-1")
    delivery(db, "m-3")
    for number in range(1, 4):
        orphan(db, postmark("m-1"), tenant_id="default")
        assert reconcile().tenant_mismatch == number
        assert ["another tenant" in problem for problem in load_problems(db.database)] == [True] * (number == 3)
    with db.engine.begin() as connection:
        record(connection, *(event("m-3", provider_event_id=f"e-{n}") for n in range(4)))
    assert load_problems(db.database) != []
    delivery(db, "m-2", tenant_id="default")
    with db.engine.begin() as connection:
        record(connection, event("m-2"), tenant_id="default")
    assert load_problems(db.database) == []


@pytest.mark.slow
def test_many_events_of_a_provider_of_which_none_has_a_usable_id_are_unhealthy(db):
    """Their key rule is probably missing; a few such events, or some among events with an id, are healthy."""
    insert(db, [], [orphan_row({"provider": "acme", "its": {"id": n}}) for n in range(9)])
    reconcile()
    assert load_problems(db.database) == []
    insert(db, [], [orphan_row({"provider": "acme", "its": {"id": 9}})])
    reconcile()
    assert [
        "of 10 newest open events of the provider acme, none has a usable id" in problem
        for problem in load_problems(db.database)
    ] == [True]
    insert(db, [], [orphan_row({"provider": "acme", "message_id": "m-1"})])
    reconcile()
    assert load_problems(db.database) == []


def test_ranges_of_a_fan_out_are_one_row_of_their_sweep(db):
    def fan_out(*ranges):
        with db.database.writing() as tx:
            run_id = runs.add(tx, runs.Run("full", "beat", remaining=0, ranges=len(ranges)))
        for number, more in enumerate(ranges):
            unfinished = ["no full sweep has ever succeeded" in problem for problem in load_problems(db.database)]
            assert number == 0 or first or unfinished == [True]
            with db.database.writing() as tx:
                runs.add_range(tx, run_id, runs.Run("range", "worker", **more))

    first = False
    fan_out({"counts": {"scanned": 30, "linked": 20}}, {"counts": {"scanned": 20}})
    assert load_problems(db.database) == []
    first = True
    fan_out(
        {"counts": {"scanned": 30, "linked": 20}},
        {"status": "failed", "counts": {"scanned": 20}, "error": "DatabaseRefusedError"},
    )
    run = load_status(db.database).last_runs[0]
    assert (run["kind"], run["status"], run["scanned"], run["linked"]) == ("full", "failed", 50, 20)
    [problem] = load_problems(db.database)
    assert "DatabaseRefusedError" in problem
    fan_out({"counts": {"scanned": 30, "linked": 30}, "linkable_since": "2020-01-01"})
    assert ["although its delivery exists" in problem for problem in load_problems(db.database)] == [True]
    assert [run["linked"] for run in load_status(db.database).last_runs] == [30, 20, 20]


@pytest.mark.slow
def test_broadcasts_that_redis_does_not_take_are_unhealthy(db, command):
    """Links are unaffected, but subscribers hear nothing."""
    insert_pairs(db, ["m-1"])
    command("sweep", MAILGLASS_REDIS_URL="redis://127.0.0.1:1/0")
    result = command("status", "--check")
    assert result.returncode == 1
    assert "MAILGLASS_REDIS_URL" in result.stdout


def test_a_tenant_among_many_small_ones_is_counted(db):
    """A sweep stores the groups beyond the 500 largest without tenants; `status --tenant` said 0 of each of those."""
    tenants = [f"t-{n}" for n in range(505)]
    insert(db, [], [orphan_row(postmark(f"m-{tenant}"), tenant_id=tenant) for tenant in tenants])
    reconcile()
    tenant_ids = {group["tenant_id"] for group in load_status(db.database).groups}
    small = sorted(set(tenants) - tenant_ids)
    assert len(small) == 5
    status = load_status(db.database, tenant_id=small[0])
    assert (status.eligible, [group["tenant_id"] for group in status.groups]) == (1, small[:1])


def test_the_last_runs_are_those_of_the_dashboard(db):
    """Recent sweeps that linked nothing hid the last full sweep and the last prune."""
    reconcile()
    mailglass_reconcile.prune()
    db.run(
        "INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status)"
        " SELECT now() + n * interval '1 minute', now(), 'recent', 'beat', 'ok' FROM generate_series(1, 6) AS n"
    )
    assert [run["kind"] for run in load_status(db.database).last_runs] == ["prune", "full"]


def test_the_status_of_a_tenant_has_nothing_of_all_tenants_but_their_problems(db):
    """The lag, the expired orphans, the jobs and the runs of globex once stood below acme's open orphans."""
    handle(db, ("suppress", "bounced"))
    delivery(db, "m-1")
    orphan(db, postmark("m-1"), type="bounced")
    reconcile()
    db.run("UPDATE mailglass_reconcile_runs SET linkable_since = now()::timestamp - interval '3 hours', expired = 41")
    words = ("open for 3 hours", "41 events have expired", " for handlers", "last successful full run", "run ended")
    of_all = commands.run_unchecked(db, "status").stdout
    assert [word for word in words if word not in of_all] == []
    assert "of all tenants" not in of_all
    of_acme, _, problems = commands.run_unchecked(db, "status", "--tenant", "acme").stdout.partition(
        "of all tenants:\n"
    )
    assert of_acme.startswith("0 open events as of")
    assert [word for word in words if word in of_acme + problems.partition("problem:")[0]] == []
    assert "problem: " in problems
    (document,) = commands.conforming(
        "status", commands.run_unchecked(db, "status", "--tenant", "acme", "--json").stdout
    )
    fields = ("lag_seconds", "last_success", "last_runs", "jobs_waiting", "jobs_dead", "totals")
    assert document["tenant_id"] == "acme"
    assert [document[field] for field in fields] == [None] * len(fields)


MANY = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, linked, scanned, duration_ms)
SELECT at, at, kind, 'command', 'ok', 56000, 56000, 12345
  FROM (VALUES ('full', now()::timestamp), ('targeted', now()::timestamp - interval '2 days')) AS run (kind, at)
"""


def test_no_row_wraps_on_a_terminal_of_80_columns(db):
    """With counts of five digits, the date once made two lines of each run."""
    db.run(MANY)
    output = commands.run_on_terminal(db, "status")
    rows = [line for line in output.splitlines() if line.startswith("│")]
    assert len(rows) == 2
    assert max(map(len, output.splitlines())) <= 80
    assert re.match(r"│ \d\d:\d\d:\d\d +│ full ", rows[1])
    assert re.match(r"│ \d\d-\d\d \d\d:\d\d │ targeted ", rows[0])
