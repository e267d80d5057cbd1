"""The tally: each orphan has exactly one outcome; the counts are true when sweeps overlap, break off, or end early."""

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

import factories
import mailglass_reconcile
import sweeping
from factories import delivery_row, insert, orphan_row, postmark
from mailglass_reconcile import reconcile
from mailglass_reconcile.rules.states import OUTCOMES, SKIPPED
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.link import Batch
from mailglass_reconcile.sweep.tally import Tally

STATES = ("unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch")
STORED = st.sampled_from([None, "matched", *STATES])


def begun(**census):
    """Return a tally with a census; `unseen` is what nobody has looked at."""
    tally = Tally()
    tally.begin({None if state == "unseen" else state: orphans for state, orphans in census.items()})
    return tally


def outcomes(tally):
    """Return what is not nothing."""
    result = tally.result()
    return {state: n for state in (*OUTCOMES, *SKIPPED) if (n := getattr(result, state))}


def test_what_is_not_taken_up_counts_by_its_stored_state():
    """What nobody has looked at and what matches ran out of time."""
    tally = begun(unseen=3, matched=2, unmatched=5, ambiguous=1)
    assert outcomes(tally) == {"unmatched": 5, "ambiguous": 1, "skipped": 5, "skipped_deadline": 5}
    assert tally.result().remaining == 11


def test_what_a_complete_sweep_did_not_meet_was_closed_by_others():
    """They are open no longer."""
    tally = begun(unseen=3, unmatched=5)
    tally.take_up([None])
    tally.stays_open(["unmatched"])
    tally.complete = True
    assert outcomes(tally) == {"unmatched": 6, "skipped": 2, "skipped_held": 2}
    assert tally.result().remaining == 6


def test_what_is_taken_up_has_no_outcome_but_out_of_time_until_it_gets_one():
    """Such as after a fault in the middle of a batch."""
    tally = begun(unseen=3)
    tally.take_up([None, None])
    tally.stays_open(["ambiguous"])
    assert outcomes(tally) == {"ambiguous": 1, "skipped": 2, "skipped_deadline": 2}


def test_what_another_session_has_closed_since_it_was_read_is_skipped_and_does_not_remain():
    """It has an outcome, so that the counts add up."""
    tally = begun(unseen=3)
    tally.was_closed(2)
    assert outcomes(tally) == {"skipped": 3, "skipped_held": 2, "skipped_deadline": 1}
    assert tally.result().remaining == 1


@pytest.mark.parametrize("closed", ["unseen", "unmatched"])
def test_what_another_session_has_closed_may_have_had_any_state(closed):
    """Whichever of two it was, two were scanned; the tally is not told."""
    tally = begun(unseen=1, unmatched=1)
    tally.was_closed(1)
    tally.take_up(["unmatched" if closed == "unseen" else None])
    tally.stays_open(["unmatched"])
    result = tally.result()
    assert (result.scanned, result.unmatched, result.skipped_held, result.remaining) == (2, 1, 1, 1)


def test_if_another_sweep_has_emptied_a_group_the_largest_gives_way():
    """It stored other states since the census."""
    tally = begun(unmatched=5, ambiguous=1)
    tally.take_up(["ambiguous", "ambiguous"])
    tally.stays_open(["ambiguous", "ambiguous"])
    assert outcomes(tally) == {"unmatched": 4, "ambiguous": 2}


def test_what_arrives_late_raises_what_was_scanned():
    """Nobody has looked at it, and the census had none of that kind left."""
    tally = begun(unmatched=2)
    tally.take_up([None])
    tally.stays_open(["unmatched"])
    result = tally.result()
    assert (result.scanned, result.unmatched, result.remaining) == (3, 3, 3)


@settings(deadline=None)
@given(st.lists(STORED, max_size=30), st.lists(st.tuples(STORED, st.sampled_from(STATES)), max_size=30), st.booleans())
def test_outcomes_always_add_up(census, judged, complete):
    """Whatever was stored before, whatever was found, and wherever it ended."""
    tally = Tally()
    tally.begin({state: census.count(state) for state in set(census)})
    for before, now in judged:
        tally.take_up([before])
        tally.stays_open([now])
    tally.take_up([None] * 3)
    tally.was_closed(2)
    tally.links(Batch(failed=["a"], held=1))
    tally.complete = complete
    result = tally.result()
    assert result.scanned == sum(getattr(result, state) for state in OUTCOMES) >= len(census)
    assert result.skipped == sum(getattr(result, why) for why in SKIPPED)
    assert min(getattr(result, state) for state in OUTCOMES) >= 0


OPEN = "SELECT count(*) FROM mailglass_open_orphans"


def fill(db, matching, never=0):
    """Insert orphans that match, from the oldest, and then such as never do."""
    insert(
        db,
        [delivery_row(str(n)) for n in range(matching)],
        [orphan_row(postmark(str(n)), age_seconds=3_000 - n) for n in range(matching)]
        + [orphan_row(postmark(f"never {n}"), age_seconds=1_000 - n) for n in range(never)],
    )


def configure(db, **changes):
    """Use other settings."""
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update=changes))


def once(action):
    """Return a progress callback that does something the first time."""
    left = [action]
    return lambda result: left.pop()(result) if left else None


def true(db, result, scanned, others=0):
    """Whether a result adds up to what was eligible, and says what is open, but for what others have closed since."""
    assert result.scanned == scanned == sum(getattr(result, state) for state in OUTCOMES), result
    assert result.skipped == sum(getattr(result, cause) for cause in SKIPPED), result
    assert result.remaining == db.value(OPEN) + others, result


@pytest.mark.parametrize("keyed", [False, True])
def test_a_sweep_within_another_counts_each_orphan_once(db, keyed):
    """The inner one stores keys and links while the outer one is between two batches."""
    if keyed:
        fill(db, 0, never=10)
        reconcile()
    fill(db, 30, never=0 if keyed else 10)
    configure(db, batch_size=10)
    inner = []
    result = sweeping.run(reconciler.prepare(), once(lambda _: inner.append(reconcile())))
    true(db, inner[0], 30)
    true(db, result, 40, others=20)
    assert (inner[0].linked, inner[0].unmatched) == (20, 10)
    assert (result.linked, result.skipped_held, result.unmatched) == (10, 20, 10)


def test_what_remains_is_counted_after_a_sweep_that_ended_early(db):
    """At its deadline, and not as of its beginning."""
    fill(db, 10, never=5)
    configure(db, batch_size=5)
    sweep = reconciler.prepare()
    result = sweeping.run(sweep, once(lambda _: sweep.stop()))
    true(db, result, 15)
    assert (result.linked, result.skipped_deadline, result.remaining, result.status) == (5, 5, 10, "partial")


def test_what_remains_is_counted_after_a_sweep_that_broke_off(db):
    """A server that refuses to go on after five of ten links."""
    fill(db, 10)
    configure(db, batch_size=5)
    sql = "CREATE FUNCTION down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57P03'; END $$"
    db.run(sql)
    trigger = "CREATE TRIGGER down BEFORE UPDATE ON mailglass_deliveries EXECUTE FUNCTION down()"
    result = sweeping.run(reconciler.prepare(), once(lambda _: db.run(trigger)))
    true(db, result, 10)
    assert (result.linked, result.remaining, result.status) == (5, 5, "failed")
    db.run("DROP TRIGGER down ON mailglass_deliveries")


def test_a_lock_after_the_last_link_costs_nothing(db):
    """Nothing is counted again at the end: everything is linked and published."""
    fill(db, 3)
    with db.engine.connect() as holder:
        lock = sa.text("LOCK mailglass_open_orphans IN ACCESS EXCLUSIVE MODE")
        result = sweeping.run(reconciler.prepare(), once(lambda _: holder.execute(lock)))
    assert (result.linked, result.published, result.remaining, result.status) == (3, 6, 0, "ok")


def test_the_causes_of_skipping_are_told_apart(db):
    """Beyond the limit, beyond the deadline, held by another session."""
    fill(db, 10)
    result = reconcile(limit=4)
    true(db, result, 10)
    assert (result.linked, result.skipped_limit, result.skipped_deadline, result.skipped_held) == (4, 6, 0, 0)
    with db.engine.begin() as other:
        other.exec_driver_sql("SELECT FROM mailglass_open_orphans ORDER BY arrived_at LIMIT 2 FOR UPDATE")
        result = reconcile()
        true(db, result, 6)
    assert (result.linked, result.skipped_limit, result.skipped_deadline, result.skipped_held) == (4, 0, 0, 2)
    configure(db, batch_size=1)
    sweep = reconciler.prepare()
    result = sweeping.run(sweep, once(lambda _: sweep.stop()))
    true(db, result, 2)
    assert (result.linked, result.skipped_limit, result.skipped_deadline, result.skipped_held) == (1, 0, 1, 0)


def test_orphans_that_arrive_meanwhile_are_the_next_sweeps(db):
    """Of a writer that commits late, too: a slice has its bound, and the counts are of what was eligible."""
    fill(db, 10)
    configure(db, batch_size=5)
    late = [orphan_row(postmark("late"), age_seconds=2_000), orphan_row(postmark("0"), age_seconds=4_000)]
    result = sweeping.run(reconciler.prepare(), once(lambda _: insert(db, [], late)))
    assert (result.scanned, result.linked) == (10, 10)
    assert result.remaining == 0, "of what was eligible"
    second = reconcile()
    assert (second.scanned, second.linked) == (2, 1)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_window_of_arrival_is_swept_alone(db, bounded):
    """After one time and until another, in UTC; two windows are a whole."""
    fill(db, 10)
    middle = db.value("SELECT arrived_at::text FROM mailglass_open_orphans ORDER BY arrived_at OFFSET 3 LIMIT 1")
    bounds = (None, middle) if bounded else (middle, None)
    result = reconciler.prepare(bounds=bounds).run()
    assert (result.scanned, result.linked) == ((4, 4) if bounded else (6, 6))
    assert result.remaining == 0
    assert db.value(OPEN) == 10 - result.linked


def test_a_dry_run_counts_as_a_sweep_would(db):
    """And leaves everything open."""
    fill(db, 3, never=2)
    factories.delivery(db, "0")
    result = reconciler.prepare(dry_run=True).run()
    true(db, result, 5)
    assert (result.linked, result.unmatched, result.ambiguous, result.remaining) == (2, 2, 1, 5)


def test_an_orphan_that_turns_out_to_be_settled_does_not_remain(db):
    """It matches nothing, and its `reconciled` event came in while our triggers were off."""
    orphan = factories.orphan(db, postmark("never"))
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        factories.insert_on(connection, events=[factories.reconciled_row(orphan, factories.new_id())])
    result = reconcile()
    assert (result.skipped_held, result.unmatched, result.remaining) == (1, 0, 0)
