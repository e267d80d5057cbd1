"""Long outputs in text files beside their tests, which `pytest --update-snapshots` writes."""

import re
from collections.abc import Callable, Mapping

import pytest

Snapshot = Callable[[str, str], None]

PATTERNS = (
    (r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: UTC)?", "TIME"),
    (r"\(now\)|\((?:\d+|an?) (?:second|minute)s? ago\)", "(moments ago)"),
    (r"\b(?:\d+|an?) (?:second|minute)s? ago", "moments ago"),
    (r"\(in (?:\d+|an?) (?:second|minute)s?\)", "(in moments)"),
    (r"\b(?:\d+|an?) (hour|day)s? ago", r"N \1s ago"),
    (r"\(in (?:\d+|an?) (hour|day)s?\)", r"(in N \1s)"),
    (r"\bin [\d,]+ (?:ms|seconds)$", "in N ms"),
    (r"^(│ TIME .*│) +[\d,]+ +│$", r"\1 N │"),
    (r" +(?=[│┃])", " "),
    (r"([─━])\1+", r"\1"),
)
"""What changes from run to run, or with a busy machine: ids, times, and so the width of columns."""


def normalize(text: str, names: Mapping[str, str]) -> str:
    """Replace ids by their names, and what else changes from run to run by a word for it."""
    for id_, name in names.items():
        text = text.replace(id_, name)
    for pattern, replacement in PATTERNS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Snapshot:
    """Compare a text with the file of a name in the folder `snapshots` beside the test, or write it there."""

    def compare(name: str, text: str) -> None:
        file = request.path.with_name("snapshots") / f"{name}.txt"
        if request.config.getoption("update_snapshots"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        expected = file.read_text() if file.exists() else ""
        assert text == expected, f"if this is right, `pytest {request.path.name} --update-snapshots` writes {file.name}"

    return compare
