"""The page on event types has a row for each type and reason, in the order that decides between equal times."""

import re

import pages
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES

TEXT = (pages.ROOT / "docs" / "event-types.md").read_text()


def first_column(text: str) -> list[str]:
    """Return the names of a table's rows."""
    return re.findall(r"^\| `(\w+)` \|", text, re.M)


def test_each_type_has_a_row():
    """In the order in which the later one wins."""
    assert tuple(first_column(TEXT.partition("## The reason")[0])) == TYPES


def test_each_reason_has_a_row():
    """In the order of the code."""
    assert tuple(first_column(TEXT.partition("## The reason")[2])) == REJECT_REASONS
