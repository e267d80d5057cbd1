"""Postmark's events, as documented: https://postmarkapp.com/developer/webhooks/webhooks-overview."""

import datetime as dt
import json

import pytest

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

BOUNCE = next(e.payload for e in load_payloads("postmark") if e.payload["RecordType"] == "Bounce")
CHANGE = next(e.payload for e in load_payloads("postmark") if e.payload["RecordType"] == "SubscriptionChange")


def read(payload, **fields):
    """Return the only event of a request."""
    (event,) = parse("postmark", json.dumps(payload | fields).encode())
    return event


def test_a_bounce_may_be_a_complaint():
    """https://postmarkapp.com/developer/api/bounce-api#bounce-types: the only type without a payload."""
    event = read(BOUNCE, Type="SpamComplaint")
    assert (event.type, event.reject_reason, event.bounce) == ("complained", "spam", None)


def test_who_gets_mail_again_has_subscribed_whatever_the_reason_was():
    """https://postmarkapp.com/developer/webhooks/subscription-change-webhook."""
    event = read(CHANGE, SuppressSending=False, SuppressionReason="HardBounce")
    assert (event.type, event.reject_reason, event.bounce) == ("subscribed", None, None)


@pytest.mark.parametrize("fields", [{"Origin": "Customer"}, {"Origin": "Admin"}, {"SuppressSending": False}])
def test_a_change_of_a_subscription_may_name_no_message(fields):
    """https://postmarkapp.com/developer/webhooks/subscription-change-webhook: MessageID is null then.

    It is no fault of the provider's or of the reader's.
    """
    event = read(CHANGE, MessageID=None, SuppressionReason="ManualSuppression", **fields)
    assert (event.message_id, event.recipient) == (None, CHANGE["Recipient"])
    assert provider_rules.may_lack_id("postmark", event.type)


def test_the_null_uuid_is_no_message_id():
    """Postmark sends it for a change that no message has caused."""
    assert read(CHANGE, MessageID="00000000-0000-0000-0000-000000000000").message_id is None


@pytest.mark.parametrize("type_", ["delivered", "opened", "clicked", "deferred", "bounced"])
def test_other_events_of_postmark_name_their_message(type_):
    """All their payloads have a MessageID."""
    assert not provider_rules.may_lack_id("postmark", type_)


@pytest.mark.parametrize(
    ("details", "status"),
    [
        ("smtp;550 5.1.1 The email account that you tried to reach does not exist.", "550 5.1.1"),
        ("smtp;250 2.0.0 OK 1700000000 ann@example.org", "250 2.0.0"),
        ("Test bounce details", None),
        (None, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(details, status):
    """`Details`: https://postmarkapp.com/developer/api/bounce-api has "smtp;550 5.1.1 …"; the webhook's is a test."""
    assert read(BOUNCE, Details=details).smtp_status == status


def test_a_time_may_have_seven_decimals():
    """Captured: github.com/symfony/symfony, Mailer/Bridge/Postmark/Tests/Webhook/Fixtures."""
    event = read(BOUNCE, BouncedAt="2022-09-02T14:29:19.1234567Z")
    assert event.occurred_at == dt.datetime(2022, 9, 2, 14, 29, 19, 123456, dt.UTC)
