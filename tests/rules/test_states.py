"""`states` is the only owner of states: commands and sentences agree with it."""

import pytest

from mailglass_reconcile.cli.sweep import WHY_OPEN
from mailglass_reconcile.rules import states
from mailglass_reconcile.store.tables.runs import COUNTS
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = pytest.mark.version_independent


def test_each_state_and_each_count_has_its_words():
    """`explain`, the dashboard and a sweep print them; an unknown state is printed as it is."""
    assert set(states.MEANINGS) == {*states.EVENT_STATES, *states.OUTCOMES, *states.SKIPPED}
    assert states.short_label("unmatched") == "no delivery yet"
    assert states.short_label("of a later version") == "of a later version"
    assert {*states.OUTCOMES, *states.SKIPPED} - set(WHY_OPEN) == {"linked", "skipped", "skipped_limit"}
    assert {*states.OUTCOMES, *states.SKIPPED} <= set(SweepResult.__slots__)
    assert set(states.OUTCOMES) <= set(COUNTS)
