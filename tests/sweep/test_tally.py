"""The tally: whatever happens, each orphan has exactly one outcome, and they add up to what was eligible."""

from hypothesis import given
from hypothesis import strategies as st

from mailglass_reconcile.pubsub import Published
from mailglass_reconcile.rules.states import OUTCOMES, SKIPPED
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


@given(st.lists(STORED, max_size=30), st.lists(st.tuples(STORED, st.sampled_from(STATES)), max_size=30), st.booleans())
def test_outcomes_always_add_up(census, judged, complete):
    """Whatever was stored before, whatever was found, and wherever it ended."""
    tally = Tally()
    tally.begin({state: census.count(state) for state in set(census)})
    for before, now in judged:
        tally.take_up([before])
        tally.stays_open([now])
    tally.take_up([None] * 3)
    tally.links(Batch(failed=["a"], held=1), Published())
    tally.complete = complete
    result = tally.result()
    assert result.scanned == sum(getattr(result, state) for state in OUTCOMES) >= len(census)
    assert result.skipped == sum(getattr(result, why) for why in SKIPPED)
    assert min(getattr(result, state) for state in OUTCOMES) >= 0
