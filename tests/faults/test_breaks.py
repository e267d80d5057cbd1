"""Each break still applies, and `breaks.txt` is about these breaks; only `make broken` applies them."""

from __future__ import annotations

import pytest

from faults.breaks import BREAKS
from faults.broken import ROOT, occurs_once, read_results

pytestmark = pytest.mark.version_independent


def test_every_break_applies() -> None:
    lost = [broken.name for broken in BREAKS if not occurs_once(broken)]
    unknown = {folder for broken in BREAKS for folder in broken.folders if not (ROOT / "tests" / folder).exists()}
    assert (lost, unknown) == ([], set()), (
        "the text that these breaks replace is no longer in their file exactly once: change their rows in"
        " tests/faults/breaks.py so that they break the same promise in the new code, then run"
        ' `make broken ARGS="NAME"` for each, which writes the test that notices into tests/faults/breaks.txt'
    )


def test_the_results_are_of_these_breaks() -> None:
    results = {name: digest for name, (digest, _) in read_results().items()}
    outdated = [broken.name for broken in BREAKS if results.pop(broken.name, None) != broken.digest]
    assert (outdated, [*results]) == ([], []), (
        "tests/faults/breaks.txt is not of the rows of tests/faults/breaks.py: the first list was changed or added, the"
        ' second removed or renamed. Run `make broken ARGS="NAME"` for each; if you interrupt it, it writes "not run"'
    )
