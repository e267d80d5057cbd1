"""Postmark's events, as documented: https://postmarkapp.com/developer/webhooks/webhooks-overview."""

import datetime as dt
import json

import pytest

from mailglass_reconcile.rules import providers
from mailglass_reconcile.webhooks import parse
from senders import documented

BOUNCE = next(e.payload for e in documented("postmark") if e.payload["RecordType"] == "Bounce")
CHANGE = next(e.payload for e in documented("postmark") if e.payload["RecordType"] == "SubscriptionChange")


def read(payload, **told):
    """Return the only event of a request."""
    (event,) = parse("postmark", json.dumps(payload | told).encode())
    return event


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("HardBounce", ("bounced", "bounced", "hard")),
        ("SoftBounce", ("bounced", "bounced", "soft")),
        ("SpamNotification", ("bounced", "spam", "soft")),
        ("VirusNotification", ("bounced", "other", "soft")),
        ("Transient", ("deferred", None, None)),
        ("DnsError", ("deferred", None, None)),
        ("AutoResponder", ("autoresponded", None, None)),
        ("BadEmailAddress", ("rejected", "invalid", None)),
        ("Blocked", ("rejected", "blocked", None)),
        ("SpamComplaint", ("complained", "spam", None)),
        ("Unsubscribe", ("unsubscribed", "unsubscribed", None)),
    ],
)
def test_the_type_of_a_bounce_says_whether_it_is_hard(type_, expected):
    """https://postmarkapp.com/developer/api/bounce-api#bounce-types.

    `SpamNotification`: "the message was delivered, but was either blocked by the user, or classified as spam": a
    filter's verdict, which is no complaint.
    """
    event = read(BOUNCE, Type=type_)
    assert (event.type, event.reject_reason, event.bounce) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"SuppressionReason": "HardBounce"}, ("bounced", "bounced", "hard")),
        ({"SuppressionReason": "SpamComplaint"}, ("complained", "spam", None)),
        ({"SuppressionReason": "ManualSuppression"}, ("unsubscribed", "unsubscribed", None)),
        ({"SuppressSending": False, "SuppressionReason": None}, ("subscribed", None, None)),
        ({"SuppressSending": False, "SuppressionReason": "HardBounce"}, ("subscribed", None, None)),
    ],
)
def test_a_change_of_a_subscription_has_its_reason(told, expected):
    """https://postmarkapp.com/developer/webhooks/subscription-change-webhook."""
    event = read(CHANGE, **told)
    assert (event.type, event.reject_reason, event.bounce) == expected


@pytest.mark.parametrize("told", [{"Origin": "Customer"}, {"Origin": "Admin"}, {"SuppressSending": False}])
def test_a_change_of_a_subscription_may_name_no_message(told):
    """https://postmarkapp.com/developer/webhooks/subscription-change-webhook: MessageID is null then.

    It is no fault of the provider's or of the reader's.
    """
    event = read(CHANGE, MessageID=None, SuppressionReason="ManualSuppression", **told)
    assert (event.message_id, event.recipient) == (None, CHANGE["Recipient"])
    assert providers.may_lack_id("postmark", event.type)


@pytest.mark.parametrize("type_", ["delivered", "opened", "clicked", "deferred", "bounced"])
def test_other_events_of_postmark_name_their_message(type_):
    """All their payloads have a MessageID."""
    assert not providers.may_lack_id("postmark", type_)


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


@pytest.mark.parametrize(
    ("told", "expected", "at"),
    [
        (
            {"RecordType": "Bounce", "Type": "HardBounce", "Email": "john@example.com",
             "BouncedAt": "2022-09-02T14:29:19.1234567Z"},
            "bounced", "2022-09-02T14:29:19.123456+00:00",
        ),
        (
            {"RecordType": "Delivery", "Recipient": "john@example.com", "DeliveredAt": "2022-09-02T11:49:27Z"},
            "delivered", "2022-09-02T11:49:27+00:00",
        ),
        (
            {"RecordType": "Click", "Recipient": "john@example.com", "ReceivedAt": "2022-09-02T14:31:09Z"},
            "clicked", "2022-09-02T14:31:09+00:00",
        ),
        (
            {"RecordType": "Open", "Recipient": "john@example.com", "ReceivedAt": "2022-09-02T14:30:47Z"},
            "opened", "2022-09-02T14:30:47+00:00",
        ),
        (
            {"RecordType": "SpamComplaint", "Type": "SpamComplaint", "Email": "john@example.com",
             "BouncedAt": "2022-09-02T14:29:57.123456Z"},
            "complained", "2022-09-02T14:29:57.123456+00:00",
        ),
        (  # Symfony reads `unsubscribed`; the suppression's reason says more
            {"RecordType": "SubscriptionChange", "Recipient": "john@example.com", "SuppressSending": True,
             "SuppressionReason": "HardBounce", "ChangedAt": "2022-09-02T14:32:30Z"},
            "bounced", "2022-09-02T14:32:30+00:00",
        ),
    ],
)  # fmt: skip
def test_what_symfony_has_captured_is_read(told, expected, at):
    """github.com/symfony/symfony, Mailer/Bridge/Postmark/Tests/Webhook/Fixtures."""
    event = read({"MessageID": "00000000-0000-0000-0000-000000000000", "MessageStream": "outbound"}, **told)
    assert (event.type, event.recipient) == (expected, "john@example.com")
    assert event.message_id == "00000000-0000-0000-0000-000000000000"
    assert event.occurred_at == dt.datetime.fromisoformat(at)
