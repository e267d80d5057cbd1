"""Every break still applies: `make broken` takes minutes, this takes none."""

from __future__ import annotations

import pytest

from faults.breaks import BREAKS, Break
from faults.broken import ROOT, find_outdated_files


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_a_break_matches_the_code_once_and_names_an_existing_test(broken: Break) -> None:
    """This holds for each file that it changes."""
    assert find_outdated_files(broken) == []
    file, _, name = broken.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text()
