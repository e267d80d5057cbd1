"""No orphan starves: unchecked ones come first, then the rotation, then those that the database refused."""

import uuid
from typing import Any

import pytest

import mailglass_reconcile
from factories import delivery, delivery_row, insert, orphan, orphan_row, postmark
from mailglass_reconcile.ops.status import load_problems
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.queries import selection
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = pytest.mark.version_independent

LAST = "SELECT {} FROM mailglass_reconcile_runs WHERE kind = 'full' AND tenant_id IS NULL ORDER BY id DESC LIMIT 1"


class OneSliceSweep(Sweep):
    """A sweep whose deadline passes after one slice, whose matches it links."""

    def _store(self, *arguments: Any) -> None:
        super()._store(*arguments)
        self.stop()


@pytest.fixture
def sweep_one_slice(db, set_limits, monkeypatch):
    """Return a function that sweeps the two orphans that are due first; its arguments are those of `prepare`."""
    set_limits(slice_orphans=2)
    monkeypatch.setattr(reconciler, "Sweep", OneSliceSweep)

    def swept(*arguments: Any, **options: Any) -> SweepResult:
        return reconciler.prepare(*arguments, **options).run()

    return swept


def fill(db, orphans, *matching):
    """Insert orphans from the oldest; those of the *matching* numbers have one delivery, the others are ambiguous."""
    rows = [delivery_row(str(n)) for n in range(orphans) for _ in range(1 if n in matching else 2)]
    insert(db, rows, [orphan_row(postmark(str(n)), age_seconds=3_000 - n) for n in range(orphans)])


def test_what_a_deadline_has_cut_off_comes_first_in_the_next_sweep_the_newest_first(db, sweep_one_slice):
    """The third sweep reaches the second of six; the others count as skipped by the deadline."""
    fill(db, 6, 1)
    assert [sweep_one_slice().linked for _ in range(3)] == [0, 0, 1]
    result = sweep_one_slice()
    assert (result.status, result.ambiguous, result.skipped_deadline) == ("partial", 2, 3)


@pytest.mark.parametrize("most", [pytest.param(Limits.most_ids, marks=pytest.mark.slow), 4])
def test_nothing_starves_in_the_ring_although_each_sweep_reaches_its_deadline(db, sweep_one_slice, set_limits, most):
    """Each rotation starts at a random row, even if a sweep reads fewer ids than are open, so a linkable orphan is
    reached.
    """
    set_limits(slice_orphans=2, most_ids=most)
    fill(db, 9)
    for _ in range(5):
        sweep_one_slice()
    db.run("DELETE FROM mailglass_deliveries WHERE id = (SELECT min(id::text)::uuid FROM mailglass_deliveries)")
    assert any(sweep_one_slice().linked for _ in range(200))


@pytest.mark.parametrize("refused", [0, 1], ids=["checked", "refused"])
def test_a_rotation_starts_at_any_orphan(db, refused):
    fill(db, 3)
    mailglass_reconcile.reconcile()
    db.run("UPDATE mailglass_open_orphans SET refused = :refused", refused=refused)
    with db.database.reading() as tx:
        opened = selection.open_window(tx)
        first_ids = {next(selection.select_orphans(tx, opened).parts[0].slices(1))[0] for _ in range(50)}
    assert len(first_ids) == 3


def test_what_does_not_fit_into_memory_is_read_after_the_rest_and_counted_when_it_is(db, set_limits):
    """Nine orphans are read four ids at a time."""
    set_limits(most_ids=4)
    fill(db, 9)
    sweep = reconciler.prepare()
    assert sweep.run().ambiguous == 9
    assert sweep.counters.selected == 9


def test_a_sweep_that_cannot_hold_all_checked_orphans_in_memory_says_that_it_is_partial(db, set_limits):
    """Four of nine are matched again; the others stay open, and in the history by their stored state."""
    fill(db, 9)
    reconciler.prepare().run()
    set_limits(most_ids=4)
    result = reconciler.prepare().run()
    assert (result.status, result.ambiguous, result.skipped_deadline) == ("partial", 4, 5)
    assert [group["orphans"] for group in db.value(LAST.format("open_groups"))] == [9]


def test_ids_are_in_memory_only_until_their_slice_is_read():
    """Each id is read once, in order and in slices, and none is kept."""
    ids = [str(uuid.UUID(int=number)) for number in range(7)]
    rows = [uuid.UUID(id_).bytes for id_ in ids]
    part = selection.Part(1, [b"".join(rows[start : start + 3]) for start in (0, 3, 6)])
    slices = part.slices(2)
    assert next(slices) == [id_.replace("-", "") for id_ in ids[:2]]
    assert len(part.packed) == 2
    assert [str(uuid.UUID(id_)) for slice_ in slices for id_ in slice_] == ids[2:]
    assert part.packed == []


def test_the_small_groups_of_many_tenants_are_counted_together(db, set_limits):
    set_limits(named_groups=2)
    insert(db, [], [orphan_row(postmark(str(n)), tenant_id=tenant) for n, tenant in enumerate("aabbcd")])
    with db.database.reading() as tx:
        open_groups = selection.select_orphans(tx, selection.open_window(tx)).open
    assert {group.tenant_id: orphans for group, orphans in open_groups.items()} == {"a": 2, "b": 2, None: 2}


def test_what_is_new_comes_before_the_rest(db, sweep_one_slice):
    """It has just left its grace, while four older ones have not been reached in this rotation."""
    fill(db, 6)
    for _ in range(4):
        sweep_one_slice()
    delivery(db, "new")
    orphan(db, postmark("new"), age_seconds=db.settings.grace_seconds)
    assert sweep_one_slice().linked == 1


def test_a_window_that_two_intervals_did_not_cover_is_unhealthy(db, sweep_one_slice):
    """Each sweep of it was partial, which counts as a success."""
    fill(db, 4)
    sweep_one_slice()
    uncovered = "full sweeps have not checked everything for"
    assert not any(uncovered in problem for problem in load_problems(db.database))
    db.run("UPDATE mailglass_reconcile_runs SET started_at = started_at - interval '16 minutes'")
    assert any(f"{uncovered} 16 min" in problem for problem in load_problems(db.database))


def test_what_nobody_has_looked_at_counts_towards_the_lag(db, sweep_one_slice):
    """After its grace, an unchecked orphan may be linkable."""
    fill(db, 4)
    sweep_one_slice()
    oldest = "SELECT arrived_at + interval '60 seconds' FROM mailglass_open_orphans ORDER BY arrived_at LIMIT 1"
    assert db.value(LAST.format("linkable_since")) == db.value(oldest)


def test_a_deadline_within_a_statement_makes_a_sweep_partial(db, set_limits, monkeypatch):
    """The second or third slice waits for a table lock; Postgres cancels its statement at the deadline."""
    fill(db, 6, 5)
    set_limits(slice_orphans=2)
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"sweep_seconds": 1}))
    with db.engine.connect() as holder:

        class Hindered(Sweep):
            def _store(self, *arguments: Any) -> None:
                super()._store(*arguments)
                holder.exec_driver_sql("LOCK TABLE mailglass_events")

        monkeypatch.setattr(reconciler, "Sweep", Hindered)
        result = reconciler.prepare().run()
    assert (result.status, result.linked) == ("partial", 1)
    assert result.skipped_deadline in (2, 4), "the second slice may have been read ahead"
    assert db.value(LAST.format("error")) is None
