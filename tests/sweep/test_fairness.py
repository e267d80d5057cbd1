"""Nothing starves: what is new comes first, and what a deadline has cut off is looked at by the next full sweep."""

import re
from typing import Any

import pytest

import mailglass_reconcile
from factories import delivery, delivery_row, insert, orphan, orphan_row, postmark
from mailglass_reconcile.ops.status import check
from mailglass_reconcile.sweep import recent, reconciler
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

LAST = "SELECT {} FROM mailglass_reconcile_runs WHERE kind = 'full' AND tenant_id IS NULL ORDER BY id DESC LIMIT 1"


class Hurried(Sweep):
    """A sweep whose deadline passes when it has looked at one slice, and linked what matches there."""

    def _keep(self, *given: Any) -> None:
        super()._keep(*given)
        self.stop()


@pytest.fixture
def hurry(db, monkeypatch):
    """Sweep two orphans, the first that are due; the arguments are those of `prepare`."""
    monkeypatch.setattr(reconciler, "SLICE_ORPHANS", 2)
    monkeypatch.setattr(reconciler, "Sweep", Hurried)

    def swept(*given: Any, **options: Any) -> SweepResult:
        return reconciler.prepare(*given, **options).run()

    return swept


def fill(db, orphans, *matching):
    """Insert orphans from the oldest; those of the *matching* numbers have one delivery, the others are ambiguous."""
    rows = [delivery_row(str(n)) for n in range(orphans) for _ in range(1 if n in matching else 2)]
    insert(db, rows, [orphan_row(postmark(str(n)), age_seconds=3_000 - n) for n in range(orphans)])


def test_a_full_sweep_goes_on_where_the_last_one_stopped(db, hurry):
    """The fifth of six is reached by the third sweep, which is not yet the end; then all are looked at again."""
    fill(db, 6, 4)
    assert [hurry().linked for _ in range(3)] == [0, 0, 1]
    assert db.value(LAST.format("position ->> 'resume'")) is None
    result = hurry()
    assert (result.status, result.ambiguous, result.skipped_deadline) == ("partial", 2, 3)


def test_what_is_new_comes_before_the_rest(db, hurry):
    """Although four older ones have not been looked at in this round; it has just come out of its grace."""
    fill(db, 6)
    for _ in range(4):
        hurry()
    delivery(db, "new")
    orphan(db, postmark("new"), age_seconds=db.settings.grace_seconds)
    assert hurry().linked == 1


def test_only_full_sweeps_with_the_same_tenant_argument_read_and_move_the_position(db, hurry):
    """A tenant's sweep has its own; ranges, targeted and recent ones have none."""
    fill(db, 4, 2)
    hurry()
    kept = db.value(LAST.format("position"))
    after = db.value("SELECT (min(arrived_at) - interval '1 second')::text FROM mailglass_open_orphans")
    oldest = db.value("SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at LIMIT 1")
    targeted = Sweep(db.database, None, kind="targeted", event_ids=[oldest])
    seen = [hurry("acme"), hurry(bounds=(after, None)), targeted.run(), recent.prepare(1.0).run()]
    assert [result.linked for result in seen] == [0, 0, 0, 0]
    assert db.value(LAST.format("position")) == kept
    assert hurry().linked == 1


def test_a_window_that_two_intervals_did_not_cover_is_unhealthy(db, hurry):
    """Each sweep of it was partial, which is a success."""
    fill(db, 4)
    hurry()
    uncovered = "full sweeps have not looked at everything for"
    assert not any(uncovered in problem for problem in check(db.database))
    db.run(
        "UPDATE mailglass_reconcile_runs SET position = jsonb_set(position, '{since}',"
        " to_jsonb((now()::timestamp - interval '16 minutes')::text))"
    )
    assert any(f"{uncovered} 16 min" in problem for problem in check(db.database))


def test_what_nobody_has_looked_at_counts_towards_the_lag(db, hurry):
    """From the end of its grace on: nobody knows whether it could be linked."""
    fill(db, 4)
    hurry()
    third = "SELECT arrived_at + interval '60 seconds' FROM mailglass_open_orphans ORDER BY arrived_at OFFSET 2 LIMIT 1"
    assert db.value(LAST.format("linkable_since")) == db.value(third)


def test_a_deadline_within_a_statement_makes_a_sweep_partial(db, monkeypatch):
    """The second slice waits for a table lock; Postgres cancels its statement when the deadline passes."""
    fill(db, 4, 0)
    monkeypatch.setattr(reconciler, "SLICE_ORPHANS", 2)
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"sweep_seconds": 1}))
    with db.engine.connect() as holder:

        class Hindered(Sweep):
            def _keep(self, *given: Any) -> None:
                super()._keep(*given)
                holder.exec_driver_sql("LOCK TABLE mailglass_events")

        monkeypatch.setattr(reconciler, "Sweep", Hindered)
        result = reconciler.prepare().run()
    assert (result.status, result.linked, result.skipped_deadline) == ("partial", 1, 2)
    assert db.value(LAST.format("error")) is None


def test_a_position_is_written_alike_whatever_the_database_s_datestyle(db, hurry):
    """As days and months in another order it would be compared, and read again, as another time."""
    db.by_default("DateStyle", "SQL, DMY")
    fill(db, 6, 4)
    assert [hurry().linked for _ in range(3)] == [0, 0, 1]
    assert re.match(r"\d{4}-\d\d-\d\d ", db.value(LAST.format("position #>> '{covered,0}'")))
