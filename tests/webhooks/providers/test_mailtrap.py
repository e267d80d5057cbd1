"""Mailtrap's webhooks, as documented."""

import json

import pytest

from mailglass_reconcile.webhooks import parse

EVENT = {
    "timestamp": 1728669700,
    "message_id": "1df37d17-0286-4d8b-8edf-bc4ec5be86e6",
    "email": "receiver@example.com",
    "event_id": "bede7236-2284-43d6-a953-1fdcafd0fd01",
}


@pytest.mark.parametrize(
    ("kind", "more", "read_as"),
    [
        (
            "bounce",
            {
                "response": "[CS01] Message rejected due to local policy",
                "response_code": 555,
                "bounce_category": "spam",
            },
            ("bounced", "bounced", "hard", "555"),
        ),
        (
            "soft bounce",
            {"response": "4.7.1 Temporary error, please retry", "response_code": 451, "bounce_category": "greylisting"},
            ("deferred", "other", "soft", "451 4.7.1"),
        ),
        ("suspension", {"reason": "Your account has reached its daily limit."}, ("deferred", "other", None, None)),
        ("reject", {"reason": "Recipient in suppression list."}, ("rejected", "blocked", None, None)),
        ("delivery", {}, ("delivered", None, None, None)),
    ],
)
def test_the_name_of_an_event_says_whether_a_bounce_is_hard_or_soft(kind, more, read_as):
    """https://docs.mailtrap.io/email-api-smtp/advanced/webhooks: code and text of the reply have their own fields."""
    (event,) = parse("mailtrap", json.dumps({"events": [{**EVENT, "event": kind, **more}]}).encode())
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == read_as
