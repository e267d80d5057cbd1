"""The page on event types has a row for each type and reason, and a provider's block those that it never reports."""

import re

import pytest
import reference

import pages
import senders
from mailglass_reconcile.providers import registry
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES

pytestmark = pytest.mark.version_independent

TEXT = (pages.ROOT / "docs" / "event-types.md").read_text()


def first_column(text: str) -> list[str]:
    """Return the names of a table's rows."""
    return re.findall(r"^\| `(\w+)` \|", text, re.M)


def test_each_type_has_a_row():
    """Rows are in the order in which the later type wins."""
    assert tuple(first_column(TEXT.partition("\n## ")[0])) == TYPES


def test_each_reason_has_a_row():
    """Rows are in the order of the code."""
    assert tuple(first_column(TEXT.partition("## The reason")[2])) == REJECT_REASONS


def reported(provider: str) -> set[str]:
    """Return the types that a provider's block does not exclude; `dispatched` is written by `record_send`."""
    line = reference.reports(registry.get_provider(provider))
    (missing,) = re.findall(r"^- \*\*never reports\*\*: (.*)$", line, re.M)
    return {*TYPES} - {"dispatched", *missing.split(", ")}


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_the_block_of_a_provider_has_each_type_of_its_documented_payloads(provider):
    """The type is that of a payload in the provider's documentation."""
    documented = senders.load_payloads(provider)
    assert documented
    assert {event.type for event in documented} <= reported(provider)


@pytest.mark.parametrize("page", ["record-and-receive.md", "handlers.md", "django.md", "trouble.md", "order-status.md"])
def test_a_page_that_names_types_links_to_their_meaning(page):
    """A reader of `deferred` is one click away from its meaning."""
    assert "](event-types.md" in (pages.ROOT / "docs" / page).read_text()
