"""The counters: each orphan has one outcome, and counts add up when sweeps overlap, fail or end early."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

import commands
import factories
import mailglass_reconcile
import sweeping
from factories import delivery_row, insert, orphan_row, postmark
from mailglass_reconcile import reconcile
from mailglass_reconcile.linking.link import Batch
from mailglass_reconcile.rules.states import OUTCOMES, SKIPPED
from mailglass_reconcile.store.queries.selection import Group, Selection
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.counters import SweepCounters

pytestmark = pytest.mark.version_independent

STATES = ("unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch")
STORED = st.sampled_from([None, "matched", *STATES])


def start_counters(selected=(), left_out=()):
    """Return counters of a sweep that selected orphans of some stored states and left others out."""
    groups = [Counter(Group(state, "acme", "postmark") for state in states) for states in (selected, left_out)]
    counters = SweepCounters()
    counters.start(Selection([], *groups))
    return counters


def open_states(counters):
    """Return how many orphans stay open, by state."""
    states = Counter()
    for group, orphans in counters.open_groups().items():
        states[group.state] += orphans
    return states


def test_what_is_left_out_counts_by_its_stored_state_and_the_rest_is_out_of_time():
    """A fault before the first slice leaves the selected orphans to the deadline."""
    counters = start_counters([None, "matched"], ["unmatched"] * 5)
    assert +counters.outcomes() == {"unmatched": 5, "skipped_deadline": 2}
    assert counters.closed == 0
    assert open_states(counters) == {None: 1, "matched": 1, "unmatched": 5}


def test_what_was_judged_has_its_outcome_and_its_new_state():
    """The stored state does not matter."""
    counters = start_counters([None, None, "ambiguous"])
    counters.mark_processed([Group(None, "acme", "postmark"), Group("ambiguous", "acme", "postmark")])
    counters.add_states(["ambiguous", "unmatched"])
    counters.add_open([Group("ambiguous", "acme", "postmark"), Group("unmatched", "acme", "postmark")])
    assert +counters.outcomes() == {"ambiguous": 1, "unmatched": 1, "skipped_deadline": 1}
    assert open_states(counters) == {None: 1, "ambiguous": 1, "unmatched": 1}


def test_what_another_session_has_closed_since_it_was_chosen_is_held_and_does_not_remain():
    """It counts as held, so that the outcomes add up."""
    counters = start_counters([None] * 3)
    counters.add("skipped_held", 2, closed=2)
    assert +counters.outcomes() == {"skipped_held": 2, "skipped_deadline": 1}
    assert counters.closed == 2


def test_states_that_another_sweep_has_stored_meanwhile_change_no_count():
    """They had no state when they were selected."""
    counters = start_counters([None] * 2, ["unmatched"])
    counters.mark_processed([Group("unmatched", "acme", "postmark")] * 2)
    counters.add_states(["unmatched"] * 2)
    counters.complete = True
    assert +counters.outcomes() == {"unmatched": 3}
    assert counters.closed == 0


def test_the_groups_of_very_many_tenants_are_bounded():
    """Tenants beyond the five hundredth are counted without a name."""
    counters = start_counters([None] * 1_000)
    counters.add_open(Group("unmatched", f"tenant {n}", "postmark") for n in range(1_000))
    counters.complete = True
    assert len(counters.open_groups()) <= 501
    assert open_states(counters) == {"unmatched": 1_000}


@settings(deadline=None)
@given(st.lists(STORED, max_size=30), st.lists(st.sampled_from(STATES), max_size=30), st.integers(0, 30))
def test_outcomes_always_add_up(selected, left_out, judged):
    """This holds wherever the sweep ends."""
    counters = start_counters(selected, left_out)
    counters.add_states(["ambiguous"] * min(judged, len(selected)))
    assert counters.outcomes().total() == len(selected) + len(left_out)
    counters.add_batch(Batch(failed=["a"], not_claimed=1))
    outcomes = counters.outcomes()
    assert outcomes.total() == max(counters.processed, len(selected)) + len(left_out)
    assert set(outcomes) <= {*OUTCOMES, *SKIPPED}
    assert min(outcomes.values()) >= 0


OPEN = "SELECT count(*) FROM mailglass_open_orphans"


def fill(db, matching, never=0):
    """Insert orphans that match, from the oldest, and then some that never match."""
    insert(
        db,
        [delivery_row(str(n)) for n in range(matching)],
        [orphan_row(postmark(str(n)), age_seconds=3_000 - n) for n in range(matching)]
        + [orphan_row(postmark(f"never {n}"), age_seconds=1_000 - n) for n in range(never)],
    )


def configure(db, **changes):
    """Use other settings."""
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update=changes))


def run_once(action):
    """Return a progress callback that runs an action the first time."""
    pending = [action]
    return lambda result: pending.pop()(result) if pending else None


def check_counts(db, result, scanned, closed=0):
    """Check that the counts add up to the eligible orphans and, except for closed ones, to those still open."""
    assert result.scanned == scanned == sum(getattr(result, state) for state in OUTCOMES), result
    assert result.skipped == sum(getattr(result, cause) for cause in SKIPPED), result
    assert result.remaining == db.value(OPEN) + closed, result


@pytest.mark.parametrize("keyed", [False, True])
def test_a_sweep_within_another_counts_each_orphan_once(db, keyed):
    """The inner sweep stores keys and links while the outer one is between two batches."""
    if keyed:
        fill(db, 0, never=10)
        reconcile()
    fill(db, 30, never=0 if keyed else 10)
    configure(db, batch_size=10)
    inner = []
    result = sweeping.run(reconciler.prepare(), run_once(lambda _: inner.append(reconcile())))
    check_counts(db, inner[0], 30)
    check_counts(db, result, 40, closed=20)
    assert (inner[0].linked, inner[0].unmatched) == (20, 10)
    assert (result.linked, result.skipped_held, result.unmatched) == (10, 20, 10)


def test_what_remains_is_counted_after_a_sweep_that_ended_early(db):
    """The number is that of its end at the deadline, not of its start."""
    fill(db, 10, never=5)
    configure(db, batch_size=5)
    sweep = reconciler.prepare()
    result = sweeping.run(sweep, run_once(lambda _: sweep.stop()))
    check_counts(db, result, 15)
    assert (result.linked, result.skipped_deadline, result.remaining, result.status) == (5, 5, 10, "partial")


def test_what_remains_is_counted_after_a_sweep_that_broke_off(db):
    """The server fails after five of ten links."""
    fill(db, 10)
    configure(db, batch_size=5)
    sql = "CREATE FUNCTION down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57P03'; END $$"
    db.run(sql)
    trigger = "CREATE TRIGGER down BEFORE UPDATE ON mailglass_deliveries EXECUTE FUNCTION down()"
    result = sweeping.run(reconciler.prepare(), run_once(lambda _: db.run(trigger)))
    check_counts(db, result, 10)
    assert (result.linked, result.remaining, result.status) == (5, 5, "failed")
    db.run("DROP TRIGGER down ON mailglass_deliveries")


def test_a_lock_after_the_last_link_costs_nothing(db):
    """Nothing is counted again at the end, when everything is linked and published."""
    fill(db, 3)
    with db.engine.connect() as holder:
        lock = sa.text("LOCK mailglass_open_orphans IN ACCESS EXCLUSIVE MODE")
        result = sweeping.run(reconciler.prepare(), run_once(lambda _: holder.execute(lock)))
    assert (result.linked, result.published, result.remaining, result.status) == (3, 6, 0, "ok")


def test_each_cause_of_skipping_has_its_own_count(db):
    """Orphans are skipped beyond the limit, beyond the deadline, or because another session holds them."""
    fill(db, 10)
    result = reconcile(limit=4)
    check_counts(db, result, 10)
    assert (result.linked, result.skipped_limit, result.skipped_deadline, result.skipped_held) == (4, 6, 0, 0)
    with db.engine.begin() as holder:
        holder.exec_driver_sql("SELECT FROM mailglass_open_orphans ORDER BY arrived_at LIMIT 2 FOR UPDATE")
        result = reconcile()
        check_counts(db, result, 6)
    assert (result.linked, result.skipped_limit, result.skipped_deadline, result.skipped_held) == (4, 0, 0, 2)
    configure(db, batch_size=1)
    sweep = reconciler.prepare()
    result = sweeping.run(sweep, run_once(lambda _: sweep.stop()))
    check_counts(db, result, 2)
    assert (result.linked, result.skipped_limit, result.skipped_deadline, result.skipped_held) == (1, 0, 1, 0)


def test_what_another_session_holds_does_not_use_up_the_limit(db):
    """A sweep goes on to the next ones until it has linked as many as it may."""
    fill(db, 10)
    with db.engine.begin() as holder:
        holder.exec_driver_sql("SELECT FROM mailglass_open_orphans ORDER BY arrived_at DESC LIMIT 4 FOR UPDATE")
        result = reconcile(limit=3)
        check_counts(db, result, 10)
        assert (result.status, result.linked, result.skipped_held, result.skipped_limit) == ("ok", 3, 4, 3)
        rest = reconcile(limit=9)
        check_counts(db, rest, 7)
    assert (rest.status, rest.linked, rest.skipped_held, rest.skipped_limit) == ("ok", 3, 4, 0)


def test_orphans_that_arrive_meanwhile_are_the_next_sweeps(db):
    """A writer may commit late, too: a slice is bounded, and the counts are of the orphans eligible at the start."""
    fill(db, 10)
    configure(db, batch_size=5)
    late = [orphan_row(postmark("late"), age_seconds=2_000), orphan_row(postmark("0"), age_seconds=4_000)]
    result = sweeping.run(reconciler.prepare(), run_once(lambda _: insert(db, [], late)))
    assert (result.scanned, result.linked) == (10, 10)
    assert result.remaining == 0, "of what was eligible"
    second = reconcile()
    assert (second.scanned, second.linked) == (2, 1)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_window_of_arrival_is_swept_alone(db, bounded):
    """Bounds are in UTC, and two adjacent windows cover everything."""
    fill(db, 10)
    middle = db.value("SELECT arrived_at::text FROM mailglass_open_orphans ORDER BY arrived_at OFFSET 3 LIMIT 1")
    bounds = (None, middle) if bounded else (middle, None)
    result = reconciler.prepare(bounds=bounds).run()
    assert (result.scanned, result.linked) == ((4, 4) if bounded else (6, 6))
    assert result.remaining == 0
    assert db.value(OPEN) == 10 - result.linked


def test_a_dry_run_counts_as_a_sweep_would(db):
    """It leaves everything open."""
    fill(db, 3, never=2)
    factories.delivery(db, "0")
    result = reconciler.prepare(dry_run=True).run()
    check_counts(db, result, 5)
    assert (result.linked, result.unmatched, result.ambiguous, result.remaining) == (2, 2, 1, 5)


@pytest.mark.parametrize("sweeps", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sweeps_that_overlap_each_count_every_orphan_once(db, set_limits, sweeps):
    """Each stores states that the others read in their next slices."""
    fill(db, 0, never=240)
    set_limits(slice_orphans=20)
    with ThreadPoolExecutor(sweeps) as pool:
        results = [future.result() for future in [pool.submit(reconcile) for _ in range(sweeps)]]
    for result in results:
        check_counts(db, result, 240)
        assert (result.unmatched, result.remaining) == (240, 240)


def test_a_sweep_within_another_that_stores_states_changes_none_of_its_counts(db, set_limits):
    """The inner sweep has checked what the outer one has selected and not read yet."""
    fill(db, 0, never=9)
    set_limits(slice_orphans=3)
    inner = []
    result = sweeping.run(reconciler.prepare(), run_once(lambda _: inner.append(reconcile())))
    for sweep_result in (*inner, result):
        check_counts(db, sweep_result, 9)
        assert sweep_result.unmatched == 9


def test_a_targeted_sweep_of_an_event_that_was_checked_counts_it_once(db):
    """The event was unmatched, and its delivery has arrived."""
    event_id = factories.orphan(db, postmark("m-1"))
    assert reconcile().unmatched == 1
    factories.delivery(db, "m-1")
    stdout = commands.run_here("sweep", "--event", event_id, "--yes").stdout
    assert "linked 1 of 1 open event" in stdout
    assert "skipped" not in stdout
