"""Amazon SES's events, as documented: https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html."""

import json
from types import MappingProxyType

import pytest

from mailglass_reconcile.record.webhooks import validate_events
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, parse, verify
from senders import ARN, change_payload, load_payloads, notification

pytestmark = pytest.mark.version_independent

EVENTS = {
    e.payload["eventType"]: e.payload for e in reversed(load_payloads("ses")) if "eventType" in e.payload
}  # the first of each kind on the page
ID = "EXAMPLE7c191be45-e9aedb9a-02f9-4d12-a87d-dd0099a07f8a-000000"


def event_of(kind, changes=MappingProxyType({})):
    """Return the documented event of a kind, with other values at some paths, such as `bounce/bounceType`."""
    return change_payload(EVENTS[kind], changes)


def through_sns(payload, **envelope):
    """Read an event from a notification."""
    message = {"Type": "Notification", "Message": json.dumps(payload), **envelope}
    return parse("ses", notification("ses", message).body)


def bare(payload):
    """Read an event without a notification, as in EventBridge, a queue or Firehose."""
    return parse("ses", json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((False, {}), (True, {}), "unsubscribed"),
        ((True, {}), (False, {}), "subscribed"),
        ((False, {"news": "OptIn"}), (False, {"news": "OptOut"}), "unsubscribed"),
        ((False, {"news": "OptOut"}), (False, {"news": "OptIn"}), "subscribed"),
        ((False, {"news": "OptOut", "tips": "OptOut"}), (False, {"news": "OptIn", "tips": "OptOut"}), "subscribed"),
    ],
)
def test_a_subscription_says_who_has_left_or_come_back(before, now, expected):
    """https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html#event-publishing-retrieving-sns-contents-subscription-object."""

    def preferences(all_, topics):
        status = [
            {"topicName": name, "subscriptionStatus": status_of_topic} for name, status_of_topic in topics.items()
        ]
        return {"unsubscribeAll": all_, "topicSubscriptionStatus": status}

    changes = {"oldTopicPreferences": preferences(*before), "newTopicPreferences": preferences(*now)}
    (event,) = through_sns(event_of("Subscription", {f"subscription/{name}": value for name, value in changes.items()}))
    assert event.type == expected


def test_of_several_recipients_each_has_its_own_codes():
    """https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-object: the page's two recipients."""
    recipients = [
        {"status": "5.0.0", "diagnosticCode": "smtp; 550 user unknown", "emailAddress": "Recipient1@example.com"},
        {"status": "4.0.0", "action": "delayed", "emailAddress": "recipient2@example.com"},
    ]
    addresses = ["recipient1@example.com", "recipient2@example.com"]
    events = through_sns(event_of("Bounce", {"bounce/bouncedRecipients": recipients, "mail/destination": addresses}))
    assert [event.smtp_status for event in events] == ["550", "4.0.0"]


def test_a_bounce_that_comes_through_two_topics_is_one_event():
    """One is the identity's feedback notification, one is from a configuration set: `feedbackId` is the bounce's
    own.
    """
    legacy = {"notificationType": "Bounce", **{k: v for k, v in event_of("Bounce").items() if k != "eventType"}}
    (first,), (second,) = through_sns(event_of("Bounce")), through_sns(legacy, MessageId="another", TopicArn=f"{ARN}2")
    assert first.provider_event_id == second.provider_event_id == f"{EVENTS['Bounce']['bounce']['feedbackId']}/0"
    (from_identity,), (from_configuration_set,) = (
        validate_events("acme", "ses", [event], strict=False) for event in (first, second)
    )
    assert from_identity.entry.idempotency_key == from_configuration_set.entry.idempotency_key


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_without_a_notification_is_read_as_one_with_it(kind):
    """A queue, Firehose and raw delivery of SNS have the event alone; EventBridge has it as `detail`."""
    (notified,) = through_sns(event_of(kind))
    bridge = {
        "version": "0",
        "id": "9b1b0e42",
        "detail-type": "Email Sent",
        "source": "aws.ses",
        "detail": event_of(kind),
    }
    for (event,) in (bare(event_of(kind)), bare(bridge), through_sns(bridge)):
        fields = (event.type, event.message_id, event.recipient, event.occurred_at, event.bounce, event.smtp_status)
        assert fields == (
            notified.type, notified.message_id, notified.recipient, notified.occurred_at, notified.bounce,
            notified.smtp_status,
        )  # fmt: skip


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_without_a_notification_is_the_same_when_it_comes_again(kind):
    """A queue delivers at least once; two opens are two events."""
    (first,), (redelivered,) = bare(event_of(kind)), bare(event_of(kind))
    (later,) = bare(event_of("Open", {"open/timestamp": "2017-08-09T22:00:20.652Z"}))
    assert first.provider_event_id == redelivered.provider_event_id != later.provider_event_id


def test_the_body_of_a_queue_that_a_topic_fills_is_a_notification():
    """Without raw message delivery SNS puts its notification into the queue."""
    body = notification("ses", {"Type": "Notification", "Message": json.dumps(event_of("Delivery"))})
    (event,) = parse("ses", body.body)
    assert (event.type, event.message_id) == ("delivered", ID)


def test_an_event_without_a_notification_cannot_be_verified():
    """Nothing signs it; the error says what to do."""
    with pytest.raises(SignatureError, match="nothing signs it: turn off raw message delivery"):
        verify("ses", json.dumps(event_of("Bounce")).encode(), {}, secret=ARN)


@pytest.mark.parametrize("body", [b"{}", b'{"detail": {"mail": 1}}', b'{"mail": []}', b'{"eventType": "Bounce"}'])
def test_a_body_that_is_neither_is_refused(body):
    """It must have a message."""
    with pytest.raises(InvalidWebhookError, match="neither a notification of SNS nor an event of SES"):
        parse("ses", body)


def candidates(event):
    """Return the ids that may be those of an event's delivery."""
    (checked,) = validate_events("acme", "ses", [event], strict=False)
    return checked.keys.candidate_ids


@pytest.mark.parametrize(
    ("region", "domain"),
    [("eu-west-1", "eu-west-1.amazonses.com"), ("us-east-1", "email.amazonses.com")],
)
def test_a_delivery_stored_by_the_id_that_recipients_see_is_found(region, domain):
    """SES's Message-ID header: https://docs.aws.amazon.com/ses/latest/dg/header-fields.html.

    The region is that of the sender's identity, or of the topic, as in the page's events of opens.
    """
    arn = f"arn:aws:ses:{region}:123456789012:identity/sender@example.com"
    opened = event_of("Open")
    del opened["mail"]["sourceArn"]
    for event in (
        *through_sns(event_of("Bounce", {"mail/sourceArn": arn})),
        *through_sns(opened, TopicArn=f"arn:aws:sns:{region}:123456789012:mail"),
    ):
        ids = candidates(event)
        assert ids[0] == ID
        assert {f"{ID}@{domain}", f"<{ID}@{domain}>"} <= set(ids)


def test_a_recipient_that_is_no_text_does_not_lose_the_others():
    """It is one of several in a notification."""
    recipients = [{"emailAddress": 7}, "x", {"emailAddress": "a@example.com"}]
    addresses = ["a@example.com", "b@example.com"]
    events = through_sns(event_of("Bounce", {"bounce/bouncedRecipients": recipients, "mail/destination": addresses}))
    assert [event.recipient for event in events] == ["x", "a@example.com"]
