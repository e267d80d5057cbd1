"""`states` is the only owner of states: commands, schemas and sentences agree with it."""

import json

import pytest

from commands import SCHEMAS
from mailglass_reconcile.cli.sweep import WHY_OPEN
from mailglass_reconcile.rules import states
from mailglass_reconcile.store.runs import COUNTS
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = pytest.mark.version_independent


def schema(name: str, *path: str) -> set[object]:
    """Return the values that a schema allows at a path of properties."""
    result = json.loads((SCHEMAS / f"{name}.json").read_text())
    for step in path:
        result = result["properties"][step]
        result = result.get("items", result)
    return set(result["enum"])


@pytest.mark.parametrize(
    ("listed", "path"),
    [
        ((*states.EVENT_STATES, None), ("explain", "state")),
        ((*states.MATCH_STATES, None), ("explain", "verdict")),
        (states.OPEN_STATES, ("orphans", "state")),
        ([state for state in states.OPEN_STATES if state != "expired"], ("status", "groups", "state")),
        (states.RUN_STATUSES, ("status", "last_runs", "status")),
        ([status for status in states.RUN_STATUSES if status != "duplicate"], ("sweep", "status")),
        (["ok", "warning", "error"], ("doctor", "findings", "status")),
    ],
)
def test_a_schema_allows_exactly_the_existing_states(listed, path):
    """This covers the schema of each command that prints a state."""
    assert schema(*path) == set(listed)


def test_each_state_and_each_count_has_its_words():
    """`explain`, the dashboard and a sweep print them; an unknown state is printed as it is."""
    assert set(states.MEANINGS) == {*states.EVENT_STATES, *states.OUTCOMES, *states.SKIPPED}
    assert states.short_label("unmatched") == "no delivery yet"
    assert states.short_label("of a later version") == "of a later version"
    assert {*states.OUTCOMES, *states.SKIPPED} - set(WHY_OPEN) == {"linked", "skipped", "skipped_limit"}
    assert {*states.OUTCOMES, *states.SKIPPED} <= set(SweepResult.__slots__)
    assert set(states.OUTCOMES) <= set(COUNTS)
