"""The page on event types has a row for each type and reason, and names the providers that report it."""

import re

import pytest
import reference

import pages
import senders
from mailglass_reconcile.providers import registry
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES

pytestmark = pytest.mark.version_independent

TEXT = (pages.ROOT / "docs" / "event-types.md").read_text()
GENERATED = reference.providers_by_type()


def first_column(text: str) -> list[str]:
    """Return the names of a table's rows."""
    return re.findall(r"^\| `(\w+)` \|", text, re.M)


def test_each_type_has_a_row():
    """Rows are in the order in which the later type wins."""
    assert tuple(first_column(TEXT.partition("\n## ")[0])) == TYPES


def test_each_reason_has_a_row():
    """Rows are in the order of the code."""
    assert tuple(first_column(TEXT.partition("## The reason")[2])) == REJECT_REASONS


def reporting(type_: str) -> set[str]:
    """Return the titles of the providers that report a type, by the page."""
    titles = {registry.get_provider(name).title for name in registry.PROVIDERS}
    (cell,) = re.findall(rf"^\| `{type_}` \| (.*) \|$", GENERATED, re.M)
    names = {name for name in titles if re.search(rf"(?:^|, |but ){re.escape(name)}(?:,|$)", cell)}
    return titles - names if cell.startswith("all") else names


def test_the_providers_of_each_type_are_those_of_the_records():
    titles = {registry.get_provider(name).title for name in registry.PROVIDERS}
    assert reporting("delivered") == titles
    assert titles - reporting("complained") == {"Azure Communication Services", "Postal", "Scaleway"}
    assert reporting("autoresponded") == {"Postmark", "SparkPost"}
    assert reporting("dispatched") == set()


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_the_page_names_a_provider_for_each_type_of_its_documented_payloads(provider):
    """The type is that of a payload in the provider's documentation."""
    documented = senders.load_payloads(provider)
    assert documented
    missing = {event.type for event in documented if registry.get_provider(provider).title not in reporting(event.type)}
    assert missing == set()


@pytest.mark.parametrize("page", ["recording.md", "handlers.md", "django.md", "trouble.md", "order-status.md"])
def test_a_page_that_names_types_links_to_their_meaning(page):
    """A reader of `deferred` is one click away from its meaning."""
    assert "](event-types.md" in (pages.ROOT / "docs" / page).read_text()
