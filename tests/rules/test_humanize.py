"""Words for people: how long ago something was."""

import pytest

from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import ago


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
    """Whether a mail was sent yesterday morning or in the evening matters."""
    assert ago(seconds) == words


@pytest.mark.parametrize(
    ("given", "title"), [("postmark", "Postmark"), ("amazon_ses", "Amazon SES"), ("own\x1b", "own\\x1b")]
)
def test_a_provider_is_called_as_it_writes_itself(given, title):
    """An unknown one as it was given, escaped."""
    assert providers.title(given) == title
