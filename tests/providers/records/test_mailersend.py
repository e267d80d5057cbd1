"""MailerSend's webhooks, version 1 and 2, as captured and as documented."""

import json

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

SENT = next(e.payload for e in load_payloads("mailersend") if "message_id" in e.payload["data"])


def read(payload):
    """Return the only event of a payload."""
    (event,) = parse("mailersend", json.dumps(payload).encode())
    return event


def test_an_activity_of_version_2_has_its_ids_recipient_time_and_tags_in_flat_data():
    """Captured 2026-09-12: github.com/anymail/django-anymail, tests/test_mailersend_webhooks.py."""
    event = read(SENT)
    assert (event.type, event.message_id, event.recipient) == ("sent", "6aa59d2fbf35297925087058", "ann@example.org")
    assert event.provider_event_id == "6aa59d304ab3f14ef03ccf10"
    assert event.occurred_at.isoformat() == "2026-09-12T18:42:10+00:00"
    assert event.metadata == {"tags": ["tag1", "Tag 2"]}


def test_the_recipient_may_be_called_email_as_in_the_documentation():
    """https://developers.mailersend.com/api/v1/account/webhooks.html#payload-example."""
    data = {name: value for name, value in SENT["data"].items() if name != "recipient"}
    assert read({**SENT, "data": {**data, "email": "ann@example.org"}}).recipient == "ann@example.org"


@pytest.mark.parametrize(
    ("of_request", "of_data", "type_"),
    [
        ("opened_unique", "opened", "opened"),
        ("spam_complaint", "spam_complaints", "complained"),
        ("hard_bounced", "rejected", "bounced"),
    ],
)
def test_the_type_is_that_of_the_request_because_datas_may_be_another(of_request, of_data, type_):
    """Captured, like the payload above."""
    assert read({**SENT, "type": f"activity.{of_request}", "data": {**SENT["data"], "type": of_data}}).type == type_


def test_version_1_dates_an_event_by_the_activity_not_by_the_attempt():
    """https://developers.mailersend.com/api/v1/webhooks.html: the request around it is dated at each attempt."""
    first = load_payloads("mailersend")[0].payload
    assert read({**first, "created_at": "2026-01-01T00:00:00Z"}) == read(first)


@pytest.mark.parametrize(
    ("kind", "meta", "read_as"),
    [
        ("hard_bounced", {"bounce_reason": "No such host", "bounce_code": 550}, ("bounced", "bounced", "hard", "550")),
        ("soft_bounced", {"bounce_reason": "Mailbox full", "bounce_code": 452}, ("bounced", "other", "soft", "452")),
        (
            "soft_bounced",
            {"bounce_reason": "452 4.2.2 full", "bounce_code": 452},
            ("bounced", "other", "soft", "452 4.2.2"),
        ),
        ("soft_bounced", [], ("bounced", "other", "soft", None)),
        ("deferred", [], ("deferred", None, None, None)),
    ],
)
def test_the_type_says_whether_a_bounce_is_hard_or_soft(kind, meta, read_as):
    """https://developers.mailersend.com/api/v1/account/webhooks.html#payload-example; an empty meta is a list."""
    event = read({**SENT, "type": f"activity.{kind}", "data": {**SENT["data"], "type": kind, "meta": meta}})
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == read_as


@pytest.mark.parametrize(
    ("suppression_reason", "reason"),
    [
        ("on_hold", "other"),
        ("hard_bounce", "bounced"),
        ("spam_complaint", "spam"),
        ("unsubscribed", "unsubscribed"),
        ("blocklisted", "blocked"),
        (None, "other"),
    ],
)
def test_what_is_suppressed_has_the_reason_that_it_names(suppression_reason, reason):
    """`on_hold` is of https://developers.mailersend.com/api/v1/account/webhooks.html.

    The others are names of its lists: https://developers.mailersend.com/api/v1/recipients.html.
    """
    data = {**SENT["data"], "type": "suppressed", "meta": {"suppression_reason": suppression_reason}}
    event = read({**SENT, "type": "activity.suppressed", "data": data})
    assert (event.type, event.reject_reason, event.bounce) == ("suppressed", reason, None)
