"""Resend's webhooks, as documented."""

import json

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

BOUNCED = next(e.payload for e in load_payloads("resend") if "bounce" in e.payload["data"])


def read(payload):
    """Return the only event of a payload."""
    (event,) = parse("resend", json.dumps(payload).encode())
    return event


def read_kind(kind, **data):
    """Read an event of a kind with more data."""
    return read({**BOUNCED, "type": kind, "data": {**BOUNCED["data"], **data}})


def test_the_type_of_a_bounce_decides_whatever_its_words_are():
    """https://resend.com/docs/dashboard/emails/email-bounces; `providers/test_ses_subtypes.py` has all types."""
    message = "The provider sent a general bounce message."
    event = read_kind("email.bounced", bounce={"type": "Permanent", "subType": "NoEmail", "message": message})
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", "bounced", "hard")


@pytest.mark.parametrize(
    ("diagnostic_code", "status"),
    [
        ("smtp; 550 5.5.0 Requested action not taken", "550 5.5.0"),
        (["smtp; 550 5.1.1 As requested: user unknown <ann@example.org>"], "550 5.1.1"),
        (["no code", "smtp; 550 5.1.1 no"], "550 5.1.1"),
        ([], None),
        ([["550"], {"a": 1}, None], None),
        ({"code": 550}, None),
        (None, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(diagnostic_code, status):
    """`diagnosticCode`: a text in the types of resend-python and resend-node, a list in a webhook of August 2026."""
    event = read_kind(
        "email.bounced", bounce={"type": "Permanent", "subType": "General", "diagnosticCode": diagnostic_code}
    )
    assert (event.bounce, event.smtp_status) == ("hard", status)


def test_an_older_bounce_without_a_type_has_the_reason_of_its_words():
    """Anymail reads it so: github.com/anymail/django-anymail, tests/test_resend_webhooks.py."""
    event = read_kind("email.bounced", bounce={"message": "The recipient's email provider sent a hard bounce message."})
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", "bounced", None)


@pytest.mark.parametrize(
    ("kind", "data", "read_as"),
    [
        ("email.failed", {"failed": {"reason": "reached_daily_quota"}}, ("failed", None)),
        ("email.scheduled", {}, ("queued", None)),
        (
            "email.suppressed",
            {"suppressed": {"type": "OnAccountSuppressionList", "message": "…"}},
            ("suppressed", "other"),
        ),
        ("email.suppressed", {"suppressed": {"type": "Suppressed", "message": "…"}}, ("suppressed", "bounced")),
        ("email.suppressed", {"suppressed": {"type": "OnTenantSuppressionList"}}, ("suppressed", "other")),
        ("email.suppressed", {"suppressed": {"type": "UnsubscribedRecipient"}}, ("suppressed", "unsubscribed")),
        ("email.suppressed", {}, ("suppressed", "other")),
    ],
)
def test_what_resend_did_not_send_or_not_yet_is_read(kind, data, read_as):
    """github.com/resend/resend-node, src/webhooks/interfaces/webhook-event.interface.ts."""
    event = read_kind(kind, **data)
    assert (event.type, event.reject_reason, event.bounce) == (*read_as, None)


def test_tags_are_kept_with_their_names_next_to_those_of_anymail():
    """https://resend.com/docs/webhooks/event-types; the header is Anymail's."""
    tags = {"category": "confirm_email", "user": "ann@example.org", "count": 1}
    headers = [{"name": "X-Tags", "value": '["welcome"]'}]
    assert read_kind("email.sent", tags=tags).metadata == {"tags": ["category:confirm_email"]}
    assert read_kind("email.sent", tags=tags, headers=headers).metadata == {
        "tags": ["welcome", "category:confirm_email"]
    }
    assert read_kind("email.sent", tags=None).metadata == {}


def test_the_message_id_header_is_the_id_over_smtp():
    """https://resend.com/docs/webhooks/event-types: `email_id` is the id of the API, `message_id` the header."""
    event = read_kind("email.sent")
    assert (event.message_id, event.smtp_message_id) == (
        "56761188-7520-42d8-8898-ff6fc54ce618",
        "<111-222-333@email.example.com>",
    )
    assert read_kind("email.sent", message_id=None).smtp_message_id is None
