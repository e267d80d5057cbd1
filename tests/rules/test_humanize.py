"""Words for people: numbers, names that others chose, how long ago something was."""

import pytest

from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import did_you_mean, format_ago, pluralize, sanitize_tenant, verb


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
    """It matters if a mail was sent yesterday morning or in the evening."""
    assert format_ago(seconds) == words


@pytest.mark.parametrize(
    ("given", "title"), [("postmark", "Postmark"), ("amazon_ses", "Amazon SES"), ("own\x1b", "own\\x1b")]
)
def test_a_provider_is_called_as_it_writes_itself(given, title):
    """An unknown one as it was given, escaped."""
    assert providers.title(given) == title


def test_a_number_and_its_verb_agree():
    """Only one is one."""
    lines = [f"{pluralize(n, 'event')} {verb(n)}" for n in (0, 1, 2_000)]
    assert lines == ["0 events are", "1 event is", "2,000 events are"]
    assert pluralize(2, "orphan matches", "orphans match") == "2 orphans match"


def test_a_known_name_is_offered_for_one_that_is_like_it_and_none_for_others():
    """In upper or lower case."""
    assert did_you_mean("BOUNCE", ["opened", "bounced"]) == "; did you mean bounced?"
    assert did_you_mean("quite another", ["opened", "bounced"]) == ""
    assert did_you_mean("bounced", ["opened", "bounced"]) == "", "it is known, but not here"


def test_a_tenant_is_shown_in_one_line_and_no_two_look_the_same():
    """An escaped one is told from one that is written like it."""
    assert [sanitize_tenant(one) for one in ("acme", "a\n", "a\\n", None)] == ["acme", "a\\n", "a\\\\n", None]
