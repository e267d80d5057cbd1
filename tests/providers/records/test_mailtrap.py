"""Mailtrap's webhooks, as documented."""

import json

import pytest

from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

EVENT = {
    "timestamp": 1728669700,
    "message_id": "1df37d17-0286-4d8b-8edf-bc4ec5be86e6",
    "email": "receiver@example.com",
    "event_id": "bede7236-2284-43d6-a953-1fdcafd0fd01",
}


def read(**fields):
    """Return the only event of a batch."""
    (event,) = parse("mailtrap", json.dumps({"events": [EVENT | fields]}).encode())
    return event


@pytest.mark.parametrize(
    ("kind", "more", "read_as"),
    [
        (
            "soft bounce",
            {"response": "4.7.1 Temporary error, please retry", "response_code": 451, "bounce_category": "greylisting"},
            ("deferred", "other", "soft", "451 4.7.1"),
        ),
        ("reject", {"reason": "Your domain is not verified."}, ("rejected", "blocked", None, None)),
        ("reject", {"reason": "Recipient in suppression list."}, ("suppressed", "other", None, None)),
        (
            "reject",
            {"reason": "Recipient in suppression list. Reason: spam complaint"},
            ("suppressed", "spam", None, None),
        ),
    ],
)
def test_an_event_is_read_with_its_reply(kind, more, read_as):
    """https://docs.mailtrap.io/email-api-smtp/webhooks: code and text of the reply have their own fields."""
    event = read(event=kind, **more)
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == read_as


@pytest.mark.parametrize(
    ("category", "reason", "bounce"),
    [
        ("badrecipient", "bounced", "hard"),
        ("Bad Recipient", "bounced", "hard"),
        ("hard", "bounced", "hard"),
        ("overquota", "other", "soft"),
        ("timeout", "timed_out", "soft"),
        ("spam_gmail", "spam", "soft"),
        ("block", "blocked", "soft"),
        ("content", "blocked", "soft"),
        ("badsender", "blocked", "soft"),
        ("relayfail", "blocked", "soft"),
        ("serverpolicy", "blocked", "soft"),
        ("verifyfail", "blocked", "soft"),
        ("dnsFail", "other", "soft"),
        ("generalfail", "other", "soft"),
        ("greylisting", "other", "soft"),
        ("other", "other", "soft"),
        ("serverfail", "other", "soft"),
        ("transientfail", "other", "soft"),
        (["newer"], "other", "soft"),
    ],
)
def test_a_bounce_is_hard_only_if_the_address_does_not_exist(category, reason, bounce):
    """https://docs.mailtrap.io/email-api-smtp/bounce-categorization: all categories; `hard` is of older payloads."""
    event = read(event="bounce", bounce_category=category)
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", reason, bounce)


def test_a_bounce_without_a_category_does_not_say_whether_it_is_hard():
    """Mailtrap also gives up after a full mailbox."""
    event = read(event="bounce")
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", "bounced", None)
