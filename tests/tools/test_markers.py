"""The markers of all tests that are collected together."""

import pytest

import marking

pytestmark = pytest.mark.version_independent


def test_what_runs_at_night_guards_no_promise_and_depends_on_no_version(request):
    """It is slow, so that no selection of quick tests has it."""
    nightly = [item for item in request.config.stash[marking.COLLECTED] if item.get_closest_marker("nightly")]
    markers = {item.nodeid: {mark.name for mark in item.iter_markers()} for item in nightly}
    assert [name for name, names in markers.items() if "slow" not in names or names & {"guard", "every_version"}] == []
