"""Texts for people: numbers, names chosen by others, and relative times."""

import pytest

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import (
    did_you_mean,
    format_ago,
    format_duration,
    format_duration_ms,
    n_of_m,
    parse_duration,
    pluralize,
    sanitize_tenant,
    verb,
)

pytestmark = pytest.mark.version_independent


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (59, "59 seconds ago"),
        (3_600, "1 hour ago"),
        (30 * 3_600, "30 hours ago"),
        (47.9 * 3_600, "47 hours ago"),
        (3 * 86_400, "3 days ago"),
        (-120, "in 2 minutes"),
    ],
)
def test_how_long_ago_something_was_is_said_in_hours_up_to_two_days(seconds, words):
    """It matters if a mail was sent yesterday morning or evening."""
    assert format_ago(seconds) == words


@pytest.mark.parametrize(
    ("provider", "title"), [("postmark", "Postmark"), ("amazon_ses", "Amazon SES"), ("own\x1b", "own\\x1b")]
)
def test_a_provider_is_called_as_it_writes_itself(provider, title):
    """An unknown name is shown unchanged, but escaped."""
    assert provider_rules.title(provider) == title


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 seconds"), (1, "1 second"), (59, "59 seconds"), (60, "1 minute"), (3_599, "59 minutes")),
        *((3_600, "1 hour"), (7_200, "2 hours"), (86_399, "23 hours"), (86_400, "1 day"), (10**8, "1,157 days")),
    ],
)
def test_a_duration_is_written_in_the_largest_unit_that_fits(seconds, words):
    assert format_duration(seconds) == words


def test_a_duration_below_ten_seconds_is_written_in_milliseconds():
    assert [format_duration_ms(ms) for ms in (7, 9_999, 10_000)] == ["7 ms", "9,999 ms", "10 seconds"]


def test_a_duration_is_read_in_seconds():
    assert [parse_duration(text) for text in ("90s", "5m", "2h", "6d")] == [90, 300, 7_200, 518_400]


def test_a_number_and_its_verb_agree():
    lines = [f"{pluralize(n, 'event')} {verb(n)}" for n in (0, 1, 2_000)]
    assert lines == ["0 events are", "1 event is", "2,000 events are"]
    assert pluralize(2, "orphan matches", "orphans match") == "2 orphans match"
    assert n_of_m(1, 2_000, "delivery", "deliveries") == "1 of 2,000 deliveries"


def test_a_known_name_is_offered_for_one_that_is_like_it_and_none_for_others():
    assert did_you_mean("BOUNCE", ["opened", "bounced"]) == "; did you mean bounced?"
    assert did_you_mean("quite another", ["opened", "bounced"]) == ""
    assert did_you_mean("bounced", ["opened", "bounced"]) == "", "it is known, but not here"


def test_a_tenant_is_shown_in_one_line_and_no_two_look_the_same():
    """An escaped tenant differs from one that is spelled like it."""
    assert [sanitize_tenant(tenant) for tenant in ("acme", "a\n", "a\\n", None)] == ["acme", "a\\n", "a\\\\n", None]
