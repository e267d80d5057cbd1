"""A sweep's row in the history of runs."""

import pytest
import sqlalchemy as sa

import mailglass_reconcile
import sweeping
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark, sendgrid
from mailglass_reconcile import DatabaseUnavailableError, Settings, prune, reconcile, reconcile_recent
from mailglass_reconcile.ops.status import load_problems
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.tables import runs
from mailglass_reconcile.sweep import reconciler, run_log

pytestmark = pytest.mark.version_independent

RUNS = """
SELECT kind, origin, tenant_id, status, error, runs, scanned, linked, unmatched, remaining, linkable_since, open_groups
  FROM mailglass_reconcile_runs ORDER BY id
"""


@pytest.fixture(autouse=True)
def nothing_held():
    """Start without recent sweeps that wait to be written."""
    run_log._idle_runs.clear()


def last(db):
    """Return the last row of the history."""
    return db.rows(RUNS)[-1]


def test_a_full_sweep_leaves_its_counts_and_what_stays_open_by_state_tenant_and_provider(db):
    """`status` reads the row instead of counting."""
    insert(
        db,
        [delivery_row("m-1"), delivery_row("m-2", tenant_id="other")],
        [orphan_row(postmark(id_)) for id_ in ("m-1", "m-2", "m-3")] + [orphan_row(sendgrid(None), tenant_id="b")],
    )
    reconcile()
    row = last(db)
    assert (row.kind, row.origin, row.tenant_id, row.status, row.error) == ("full", "python", None, "ok", None)
    assert (row.scanned, row.linked, row.unmatched, row.remaining, row.linkable_since) == (4, 1, 1, 3, None)
    open_ = {(g["state"], g["tenant_id"], g["provider"]): g["orphans"] for g in row.open_groups}
    assert open_ == {
        ("unmatched", "acme", "postmark"): 1,
        ("tenant_mismatch", "acme", "postmark"): 1,
        ("unmatchable", "b", "sendgrid"): 1,
    }
    reconcile()
    assert {(g["state"], g["tenant_id"], g["provider"]): g["orphans"] for g in last(db).open_groups} == open_


def test_what_could_be_linked_and_was_not_is_said_with_its_time(db):
    """The lag starts at the end of the grace or when the delivery came, whichever is later."""
    insert(
        db,
        [delivery_row("m-1"), delivery_row("m-2")],
        [orphan_row(postmark(id_), age_seconds=500) for id_ in ("m-1", "m-2")],
    )
    with sweeping.held(db.engine, free=1):
        reconcile()
    lag = db.value(
        "SELECT extract(epoch FROM (now() AT TIME ZONE 'UTC') - linkable_since) FROM mailglass_reconcile_runs"
    )
    assert 200 < lag < 300, "the deliveries are four minutes old, and the graces ended seven minutes ago"


def test_a_sweep_with_a_limit_never_counts_as_a_full_one(db):
    insert_pairs(db, ["m-1", "m-2"])
    assert reconcile(limit=1).status == "ok"
    assert (last(db).kind, last(db).open_groups) == ("targeted", None)
    [problem] = load_problems(db.database)
    assert problem.startswith("sweeps: no full sweep of all tenants has run yet")


def test_a_sweep_that_fails_says_so_and_names_the_class_of_the_error_only(db):
    """An error's text may contain addresses."""
    insert_pairs(db, ["m-1"])
    db.run("ALTER TABLE mailglass_events RENAME COLUMN metadata TO meta")
    assert reconcile().status == "failed"
    db.run("ALTER TABLE mailglass_events RENAME COLUMN meta TO metadata")
    assert (last(db).status, last(db).error, last(db).linked) == ("failed", "SchemaOutdatedError", 0)


def test_a_sweep_that_is_interrupted_is_partial_and_not_failed(db):
    """Ctrl-C or a worker's time limit interrupts it."""
    insert_pairs(db, ["m-1"])
    steps = reconciler.prepare().batches()
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert (last(db).status, last(db).error, last(db).linked) == ("partial", "KeyboardInterrupt", 1)


def test_a_run_began_before_its_links_however_long_the_counting_after_them_took(db):
    """`explain` finds the run of a link by its time."""
    insert_pairs(db, ["m-1"])
    with db.engine.connect() as holder:
        lock = sa.text("LOCK mailglass_open_orphans IN ACCESS EXCLUSIVE MODE")
        for pairs in reconciler.prepare().batches():
            if pairs:
                holder.execute(lock)
    started_at = db.value("SELECT started_at FROM mailglass_reconcile_runs")
    assert started_at <= db.value("SELECT inserted_at FROM mailglass_events WHERE type = 'reconciled'")


def test_a_history_that_cannot_be_written_costs_a_line_and_no_link(db, caplog):
    """The history is never the reason why a sweep fails."""
    db.run("ALTER TABLE mailglass_reconcile_runs ADD CHECK (false) NOT VALID")
    insert_pairs(db, ["m-1"])
    assert reconcile().linked == 1
    assert [r.message for r in caplog.records if "history" in r.message]


def test_a_connection_on_which_no_transaction_can_begin_costs_a_line_too(db, caplog):
    """An interruption may leave its transaction open, which is no error of the database."""
    with db.database.connect() as connected:
        connected.connection.begin()
        assert run_log.add_run(connected, runs.Run("full", "python")) is None
    assert caplog.messages == ["this sweep is missing from the history of runs: InvalidRequestError"]
    assert db.rows(RUNS) == []


def test_recent_sweeps_of_a_minute_share_a_row_and_idle_ones_are_noted_together(db, set_limits):
    """A hundred idle ticks write nothing until some seconds have passed; a tick that links is written at once."""
    for _ in range(5):
        reconcile_recent(1.0)
    assert db.rows(RUNS) == []
    insert_pairs(db, ["m-1"], age_seconds=0)
    reconcile_recent(1.0)
    assert sum(row.linked for row in db.rows(RUNS)) == 1
    set_limits(held_seconds=0)
    reconcile_recent(1.0)
    rows = db.rows(RUNS)
    assert sum(row.runs for row in rows) == 7
    assert sum(row.linked for row in rows) == 1
    assert {(row.kind, row.origin) for row in rows} == {("recent", "python")}
    assert len(rows) <= 2, "two if a minute ended between them"


def test_what_idle_recent_sweeps_have_looked_at_is_added_up(db, set_limits):
    """Nothing matches, so their counts are added up in one row."""
    insert(db, [], [orphan_row(postmark("m-1"), age_seconds=0)])
    for _ in range(2):
        reconcile_recent(10.0)
    set_limits(held_seconds=0)
    reconcile_recent(10.0)
    [row] = db.rows(RUNS)
    assert (row.runs, row.scanned, row.unmatched) == (3, 3, 3)


def test_a_range_is_added_to_the_row_of_the_sweep_that_was_cut(db):
    """A range has no row of its own, because a fan-out is one sweep."""
    insert_pairs(db, ["m-1"])
    with db.database.writing() as tx:
        cut = runs.add(tx, runs.Run("full", "beat", remaining=0, ranges=1))
    reconciler.prepare(bounds=("2000-01-01", None), range_of=cut, origin="worker").run()
    [row] = db.rows(RUNS)
    assert (row.kind, row.origin, row.status, row.linked) == ("full", "beat", "ok", 1)


def test_a_dry_run_leaves_nothing_in_the_history(db):
    """It writes nothing at all."""
    reconciler.prepare(dry_run=True).run()
    assert db.rows(RUNS) == []


def test_old_rows_are_added_up_by_the_prune_so_that_totals_never_shrink(db):
    """One row is kept per kind, origin and status, however often the prune runs."""
    db.run(
        """INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, linked, runs)
           SELECT t, t, 'full', 'beat', CASE WHEN n % 10 = 0 THEN 'failed' ELSE 'ok' END, n, 1
             FROM generate_series(1, 100) AS n,
                  LATERAL (SELECT (now() AT TIME ZONE 'UTC') - make_interval(days => 20 + n, hours => 12) AS t) AS at"""
    )
    for _ in range(2):
        prune()
    old = db.rows(
        "SELECT status, runs, linked FROM mailglass_reconcile_runs"
        " WHERE finished_at < (now() AT TIME ZONE 'UTC') - make_interval(days => :days) ORDER BY status",
        days=runs.RETENTION_DAYS,
    )
    assert [tuple(row) for row in old] == [("failed", 10, 550), ("ok", 81, 4_455)]
    assert db.value("SELECT sum(linked) FROM mailglass_reconcile_runs") == 5_050
    assert db.value("SELECT count(*) FROM mailglass_reconcile_runs WHERE kind = 'prune'") == 2


@pytest.mark.parametrize(
    "column", ["kind = 'replay'", "status = 'paused'", "finished_at = 'infinity'", "open_groups = '{}'"]
)
def test_the_history_takes_no_row_that_its_readers_do_not_know(db, column):
    """A role that may write the history cannot break the dashboard or `/metrics`."""
    reconcile()
    with pytest.raises(sa.exc.IntegrityError, match="violates check constraint"):
        db.run(f"UPDATE mailglass_reconcile_runs SET {column}")  # noqa: S608 - of the list above


def test_an_unreachable_database_is_not_asked_again_for_the_history():
    """The sweep's own error is enough."""
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/none")
    mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
    try:
        with pytest.raises(DatabaseUnavailableError):
            reconcile()
    finally:
        mailglass_reconcile.configure()
