"""SendGrid's events, as documented: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event."""

import json

import pytest

from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

COMMON = {
    "email": "example@test.com",
    "timestamp": 1513299569,
    "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
    "sg_event_id": "rbtnWrG1DVDGGGFHFy05A==",
    "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.000000000000000000000",
}


def read(**fields):
    """Return the only event of a batch."""
    (event,) = parse("sendgrid", json.dumps([COMMON | fields]).encode())
    return event


@pytest.mark.parametrize(("type_", "reason", "bounce"), [("bounce", "bounced", "hard"), ("blocked", "blocked", "soft")])
def test_the_type_of_a_bounce_says_whether_it_is_hard(type_, reason, bounce):
    """The page's bounce and block: a block "could not or would not accept the message temporarily"."""
    event = read(event="bounce", reason="500 unknown recipient", status="5.0.0", type=type_)
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", reason, bounce)


def test_a_message_that_was_tried_for_too_long_has_timed_out():
    """`expired` is in Mailglass's own mapping (lib/mailglass/webhook/providers/sendgrid.ex) and in Anymail's."""
    event = read(event="bounce", reason="unable to deliver", type="expired")
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", "timed_out", "soft")


def test_a_bounce_without_a_type_does_not_say_whether_it_is_hard():
    """The page's first example has none."""
    event = read(event="bounce", reason="500 unknown recipient", status="5.0.0")
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", "bounced", None)


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("Invalid", "invalid"),
        ("Spam Content", "spam"),
        ("Spam Content (if Spam Checker app is enabled)", "spam"),
        ("Invalid SMTPAPI header", "other"),
        ("Recipient List over Package Quota", "other"),
    ],
)
def test_a_drop_has_its_reason_and_is_no_bounce(why, reason):
    """The page's list of drop reasons."""
    event = read(event="dropped", reason=why, status="5.0.0")
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == ("rejected", reason, None, None)


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("Bounced Address", "bounced"),
        ("Unsubscribed Address", "unsubscribed"),
        ("Spam Reporting Address", "spam"),
    ],
)
def test_a_drop_for_an_address_on_a_list_is_suppressed(why, reason):
    """The page's list of drop reasons: SendGrid did not send."""
    event = read(event="dropped", reason=why, status="5.0.0")
    assert (event.type, event.reject_reason, event.bounce, event.smtp_status) == ("suppressed", reason, None, None)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"event": "bounce", "reason": "550 5.1.1 <ann@example.org> unknown", "status": "5.1.1"}, "550 5.1.1"),
        ({"event": "bounce", "reason": "500 unknown recipient", "status": "5.0.0"}, "500"),
        ({"event": "bounce", "reason": "unable to get mx info: failed", "type": "blocked"}, None),
        ({"event": "bounce", "reason": "unable to get mx info: failed", "status": "5.0.0"}, "5.0.0"),
        ({"event": "deferred", "response": "400 try again later", "attempt": "5"}, "400"),
        ({"event": "delivered", "response": "250 OK"}, "250"),
        ({"event": "processed"}, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(fields, status):
    """The page's examples; the bounce without a status is captured: discourse/discourse, commit fbe5a9c7."""
    assert read(**fields).smtp_status == status


@pytest.mark.parametrize(("machine", "metadata"), [(True, {"machine": True}), (False, {}), (None, {})])
def test_an_open_by_a_machine_says_so(machine, metadata):
    """`sg_machine_open`: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event#engagement-events."""
    event = read(event="open", **({} if machine is None else {"sg_machine_open": machine}))
    assert (event.type, event.metadata) == ("opened", metadata)


def test_the_message_id_of_a_message_sent_over_smtp_is_kept():
    """`smtp-id` is "a unique ID attached to the message by the originating system".

    Captured: discourse/discourse, commit fbe5a9c7, from its own SMTP client.
    """
    event = read(
        **{
            "event": "bounce",
            "sg_message_id": "euo2iKxdSayPF4YE4--I7A.recvd-5f54b5d587-pczjm-1-67BADEEA-6.0",
            "smtp-id": "<870b3a2a-160c-4fc8-bc9a-bd0d5b943b81@forum.example.com>",
        }
    )
    assert event.message_id == "euo2iKxdSayPF4YE4--I7A"
    assert event.smtp_message_id == "<870b3a2a-160c-4fc8-bc9a-bd0d5b943b81@forum.example.com>"


@pytest.mark.parametrize(
    "header",
    [COMMON["smtp-id"], "<5lFl7Fr1Rjme_EyzNNB_5A@stismtpd-006.sjc1.sendgrid.net>", "", None, 7],
)
def test_an_id_that_sendgrid_has_made_is_no_other_id(header):
    """Its first half is the id of the send."""
    assert read(**{"event": "delivered", "smtp-id": header}).smtp_message_id is None
