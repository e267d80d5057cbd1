"""Postal's webhooks, as documented and as its source makes them."""

import json

import pytest

from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

MESSAGE = {
    "id": 12345,
    "token": "abcdef123",
    "direction": "outgoing",
    "message_id": "5817a64332f44_4ec93ff59e79d154565eb@app34.mail",
    "to": "test@example.com",
    "from": "sales@awesomeapp.com",
    "tag": "welcome",
}
"""https://docs.postalserver.io/developer/webhooks."""


def read(event, **payload):
    """Return the only event of a payload."""
    body = {"event": event, "timestamp": 1477945177.12994, "uuid": "u", "payload": {"message": MESSAGE, **payload}}
    (parsed,) = parse("postal", json.dumps(body).encode())
    return parsed


@pytest.mark.parametrize(
    ("details", "output", "read_as"),
    [
        # app/senders/smtp_sender.rb: SMTPFatalError, which is a reply of 5xx
        (
            "Permanent SMTP delivery error when sending to mx (192.0.2.1)",
            "550 5.1.1 no",
            ("bounced", "bounced", "hard"),
        ),
        ("Permanent SMTP delivery error when sending to mx (192.0.2.1)", "552 too big", ("bounced", "bounced", "hard")),
        # app/lib/message_dequeuer/outgoing_message_processor.rb and single_message_processor.rb: no server has replied
        ("Message is likely spam. Threshold is 5.0 and the message scored 7.0.", "", ("failed", None, None)),
        ("Maximum number of delivery attempts (18) has been reached.", "", ("failed", None, None)),
        ("Message's domain no longer exist", None, ("failed", None, None)),
    ],
)
def test_a_hard_fail_is_a_bounce_if_the_recipients_server_refused_the_message(details, output, read_as):
    """Source: github.com/postalserver/postal. What Postal gives up by itself has failed."""
    event = read("MessageDeliveryFailed", status="HardFail", details=details, output=output)
    assert (event.type, event.reject_reason, event.bounce) == read_as


@pytest.mark.parametrize(
    ("details", "read_as"),
    [
        ("Recipient (a@b.example) is on the suppression list (reason: too many hard fails)", ("suppressed", "bounced")),
        ("Recipient (a@b.example) is on the suppression list (reason: too many soft fails)", ("suppressed", "bounced")),
        ("Recipient (a@b.example) is on the suppression list (reason: on request)", ("suppressed", "other")),
        ("Recipient (a@b.example) is on the suppression list (reason: too m", ("suppressed", "other")),
        ("Message held because send limit (100) has been reached.", ("queued", None)),
        ("Credential is configured to hold all messages authenticated by it.", ("queued", None)),
        (None, ("queued", None)),
    ],
)
def test_a_message_that_is_held_for_the_suppression_list_is_suppressed(details, read_as):
    """github.com/postalserver/postal, app/lib/message_dequeuer/; details are cut after 250 characters."""
    event = read("MessageHeld", status="Held", details=details, output="")
    assert (event.type, event.reject_reason, event.bounce) == (*read_as, None)


@pytest.mark.parametrize(
    ("event", "status", "output", "smtp_status"),
    [
        ("MessageSent", "Sent", "250 2.0.0 OK 1477944899 ly2si31746747wjb.95 - gsmtp", "250 2.0.0"),
        ("MessageDelayed", "SoftFail", "451 4.7.1 Please try again later", "451 4.7.1"),
        ("MessageDelayed", "SoftFail", "Net::ReadTimeout", None),
        ("MessageDeliveryFailed", "HardFail", "550 5.1.1 no", "550 5.1.1"),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(event, status, output, smtp_status):
    """https://docs.postalserver.io/developer/webhooks#message-status-events."""
    assert read(event, status=status, output=output).smtp_status == smtp_status


def test_the_message_id_header_is_the_id_over_smtp():
    """It has no angle brackets: https://docs.postalserver.io/developer/webhooks."""
    sent = read("MessageSent", status="Sent")
    bounced = read("MessageBounced", message=None, original_message=MESSAGE, bounce={"id": 12347, "message_id": "b@c"})
    for event in (sent, bounced):
        assert (event.message_id, event.smtp_message_id) == (12345, "5817a64332f44_4ec93ff59e79d154565eb@app34.mail")
