"""Amazon SES's events, as documented: https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html."""

import copy
import datetime as dt
import json

import pytest

from mailglass_reconcile.record.webhooks import validate_events
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, parse, verify
from senders import ARN, load_payloads, notification

pytestmark = pytest.mark.version_independent

EVENTS = {
    e.payload["eventType"]: e.payload for e in reversed(load_payloads("ses")) if "eventType" in e.payload
}  # the first of each kind on the page
ID = "EXAMPLE7c191be45-e9aedb9a-02f9-4d12-a87d-dd0099a07f8a-000000"


def event_of(kind, **changed):
    """Return the documented event of a kind, with other values at some paths, such as `bounce__bounceType`."""
    payload = copy.deepcopy(EVENTS[kind])
    for path, value in changed.items():
        *names, last = path.split("__")
        place = payload
        for name in names:
            place = place[name]
        place[last] = value
    return payload


def through_sns(payload, **envelope):
    """Read an event from a notification."""
    message = {"Type": "Notification", "Message": json.dumps(payload), **envelope}
    return parse("ses", notification("ses", message).body)


def bare(payload):
    """Read an event without a notification, as in EventBridge, a queue or Firehose."""
    return parse("ses", json.dumps(payload).encode())


def read_as(payload):
    """Return an event's type, reason, and hard or soft."""
    (event,) = through_sns(payload)
    return event.type, event.reject_reason, event.bounce


@pytest.mark.parametrize(("type_", "subtype"), [("Permanent", None), ("Newer", "General")])
def test_a_bounce_of_a_type_that_is_not_known_is_neither_hard_nor_soft(type_, subtype):
    """`providers/test_ses_subtypes.py` has the known ones."""
    assert read_as(event_of("Bounce", bounce__bounceType=type_, bounce__bounceSubType=subtype)) == (
        "bounced",
        "bounced",
        None,
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"complaint__complaintFeedbackType": "abuse"}, ("complained", "spam", None)),
        ({"complaint__complaintFeedbackType": "fraud"}, ("complained", "spam", None)),
        ({"complaint__complaintFeedbackType": None}, ("complained", "spam", None)),
        ({"complaint__complaintFeedbackType": "not-spam"}, ("unknown", None, None)),
        ({"complaint__complaintSubType": "OnAccountSuppressionList"}, ("suppressed", "spam", None)),
        ({"complaint__complaintSubType": "OnTenantSuppressionList"}, ("suppressed", "spam", None)),
        ({"complaint__complaintSubType": "UnsubscribedRecipient"}, ("suppressed", "unsubscribed", None)),
    ],
)
def test_not_every_complaint_is_one(changed, expected):
    """https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#complaint-object."""
    assert read_as(event_of("Complaint", **changed)) == expected


def test_a_delay_is_about_the_recipients_that_wait():
    """https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-examples.html."""
    payload = event_of("DeliveryDelay", mail__destination=["a@example.com", "recipient@example.com", "b@example.com"])
    (event,) = through_sns(payload)
    assert (event.type, event.recipient) == ("deferred", "recipient@example.com")
    assert event.smtp_status == "421 4.4.1"


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

    payload = event_of(
        "Subscription",
        subscription__oldTopicPreferences=preferences(*before),
        subscription__newTopicPreferences=preferences(*now),
    )
    assert read_as(payload)[0] == expected


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("Bounce", "2017-08-05T00:41:02.669Z"),
        ("Complaint", "2017-08-05T00:41:02.669Z"),
        ("Delivery", "2016-10-19T23:21:04.133Z"),
        ("Open", "2017-08-09T22:00:19.652Z"),
        ("DeliveryDelay", "2020-06-16T00:25:40.095Z"),
        ("Subscription", "2022-01-12T01:00:17.910Z"),
        ("Send", "2017-08-05T00:40:02.012Z"),
        ("Reject", "2017-08-05T00:40:02.012Z"),
        ("Rendering Failure", "2017-08-05T00:40:02.012Z"),
    ],
)
def test_an_event_happened_at_its_own_time_and_not_at_that_of_the_notification(kind, at):
    """https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html."""
    for read in (through_sns, bare):
        (event,) = read(event_of(kind))
        assert event.occurred_at == dt.datetime.fromisoformat(at)


def test_an_event_without_a_time_of_its_own_has_that_of_the_notification():
    """Times that SES adds later are not those of the message."""
    payload = {**event_of("Send"), "eventType": "Newer"}
    (event,) = through_sns(payload)
    assert (event.type, event.occurred_at.isoformat()) == ("unknown", "2026-03-01T11:59:58.250000+00:00")


def test_the_tags_of_the_message_are_kept_without_those_of_ses():
    """https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-examples.html, the delivery record."""
    tags = {
        "ses:configuration-set": ["ConfigSet"],
        "ses:caller-identity": ["ses_user"],
        "myCustomTag1": ["myCustomTagValue1"],
        "myCustomTag2": ["myCustomTagValue2"],
    }
    (event,) = through_sns(event_of("Delivery", mail__tags=tags))
    assert event.metadata["tags"] == ["myCustomTag1:myCustomTagValue1", "myCustomTag2:myCustomTagValue2"]


@pytest.mark.parametrize(
    ("kind", "changed", "status"),
    [
        ("Bounce", {}, "550 5.1.1"),
        ("Bounce", {"bounce__bouncedRecipients": [{"emailAddress": "a@b.c", "status": "5.0.0"}]}, "5.0.0"),
        ("Bounce", {"bounce__bouncedRecipients": [{"diagnosticCode": "X-Postfix; unknown user"}]}, None),
        ("Delivery", {}, "250 2.6.0"),
        ("Send", {}, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(kind, changed, status):
    """Documented as `diagnosticCode`, `status` and `smtpResponse`."""
    (event,) = through_sns(event_of(kind, **changed))
    assert event.smtp_status == status


def test_of_several_recipients_each_has_its_own_codes():
    """https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-object: the page's two recipients."""
    recipients = [
        {"status": "5.0.0", "diagnosticCode": "smtp; 550 user unknown", "emailAddress": "Recipient1@example.com"},
        {"status": "4.0.0", "action": "delayed", "emailAddress": "recipient2@example.com"},
    ]
    addresses = ["recipient1@example.com", "recipient2@example.com"]
    events = through_sns(event_of("Bounce", bounce__bouncedRecipients=recipients, mail__destination=addresses))
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
    (later,) = bare(event_of("Open", open__timestamp="2017-08-09T22:00:20.652Z"))
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
        *through_sns(event_of("Bounce", mail__sourceArn=arn)),
        *through_sns(opened, TopicArn=f"arn:aws:sns:{region}:123456789012:mail"),
    ):
        ids = candidates(event)
        assert ids[0] == ID
        assert {f"{ID}@{domain}", f"<{ID}@{domain}>"} <= set(ids)


def test_the_message_id_of_a_message_sent_over_smtp_is_kept():
    """SES replaces the header, but its events have the original: the page's example of the `mail` object."""
    headers = [{"name": "From", "value": "x@example.com"}, {"name": "Message-ID", "value": "<mine@shop.example>"}]
    (event,) = through_sns(event_of("Bounce", mail__headers=headers))
    assert event.smtp_message_id == "<mine@shop.example>"
    (event,) = through_sns(
        event_of("Bounce", mail__headers=[], mail__commonHeaders={"messageId": " custom-message-ID"})
    )
    assert event.smtp_message_id == "custom-message-ID"


@pytest.mark.parametrize("id_", [ID, f"<{ID}@eu-west-1.amazonses.com>", None, 7])
def test_an_id_that_ses_has_made_is_no_other_id(id_):
    """Events of opens and clicks have it in their headers."""
    headers = [{"name": "Message-ID", "value": id_}]
    (event,) = through_sns(event_of("Click", mail__headers=headers, mail__commonHeaders={}))
    assert event.smtp_message_id is None


def test_a_recipient_that_is_no_text_does_not_lose_the_others():
    """It is one of several in a notification."""
    recipients = [{"emailAddress": 7}, "x", {"emailAddress": "a@example.com"}]
    addresses = ["a@example.com", "b@example.com"]
    events = through_sns(event_of("Bounce", bounce__bouncedRecipients=recipients, mail__destination=addresses))
    assert [event.recipient for event in events] == ["x", "a@example.com"]
