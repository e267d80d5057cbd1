"""MailerSend's webhooks, version 1 and 2, as captured and as documented."""

import json

import pytest

from mailglass_reconcile.webhooks import parse
from webhooks.senders import documented

SENT = next(e.payload for e in documented("mailersend") if "message_id" in e.payload["data"])


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
    """Captured, as above."""
    assert read({**SENT, "type": f"activity.{of_request}", "data": {**SENT["data"], "type": of_data}}).type == type_


def test_version_1_dates_an_event_by_the_activity_not_by_the_attempt():
    """https://developers.mailersend.com/api/v1/webhooks.html: the request around it is dated at each attempt."""
    first = documented("mailersend")[0].payload
    assert read({**first, "created_at": "2026-01-01T00:00:00Z"}) == read(first)
