"""Anymail's send status as `Sent`, from each provider's response, read by Anymail's own backend."""

import contextlib

import pytest
from anymail.exceptions import AnymailRecipientsRefused
from anymail.message import AnymailMessage, AnymailRecipientStatus, AnymailStatus
from anymail.signals import post_send
from django.test import override_settings

import anymail_sends
import anymail_webhooks
from anymail_sends import send, send_accepted
from mailglass_reconcile import Sent
from mailglass_reconcile.contrib.anymail import sent
from mailglass_reconcile.record.sends import validate_sends

pytestmark = [
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support"),
    pytest.mark.python_dependent,
]

ANN = "Ann@example.org"
BOB = "bob@example.org"
PROVIDERS = [
    "Postmark",
    "Amazon SES",
    "Mailgun",
    "Brevo",
    "Resend",
    "SparkPost",
    "Mailjet",
    "Mandrill",
    "MailerSend",
    "Mailtrap",
    "Postal",
    "Scaleway",
]


@pytest.fixture(autouse=True)
def anymail(anymail_django):
    """Configure Anymail for every backend."""
    with override_settings(ANYMAIL={**anymail_webhooks.settings(), **anymail_sends.SETTINGS}):
        yield


def status(**recipients):
    """Return a backend's status from `name=(message_id, status)`."""
    anymail_status = AnymailStatus()
    anymail_status.set_recipient_status(
        {
            f"{name}@example.org": AnymailRecipientStatus(*recipient_status)
            for name, recipient_status in recipients.items()
        }
    )
    return anymail_status


@pytest.mark.parametrize("esp_name", PROVIDERS)
def test_each_recipient_that_a_provider_accepts_is_sent_under_its_id(esp_name):
    """Some providers give each recipient an id, others one to the call."""
    own = esp_name in {"Mailjet", "Mandrill", "Mailtrap", "Postal", "Scaleway"}
    accepted_status = send_accepted(
        esp_name, [ANN, BOB], [1001, 1002] if esp_name in {"Mailjet", "Postal"} else ["m-1", "m-2"]
    )
    request = sent(None, accepted_status)
    assert [(event.recipient, event.type) for event in request] == [(ANN, "dispatched"), (BOB, "dispatched")]
    assert [str(event.message_id)[-1] for event in request] == ["1", "2" if own else "1"]
    assert len(validate_sends("acme", esp_name, request)) == 2


@pytest.mark.parametrize("esp_name", ["SendGrid", "Unisender Go"])
def test_the_id_that_anymail_makes_is_the_one_of_the_send(esp_name):
    """The provider returns it in its webhooks."""
    request = sent(None, send_accepted(esp_name, [ANN], ["unused"]))
    assert [(event.recipient, event.type, len(event.message_id)) for event in request] == [(ANN, "dispatched", 36)]


def test_a_receiver_of_post_send_gets_the_arguments_of_the_function():
    """The signal passes `message` and `status`."""
    recorded = []

    def receive(message, status, **_options):
        recorded.extend(sent(message, status))

    post_send.connect(receive)
    try:
        send_accepted("Postmark", [ANN], ["m-1"])
    finally:
        post_send.disconnect(receive)
    assert recorded == [Sent(recipient=ANN, message_id="m-1", type="dispatched")]


@pytest.mark.parametrize(
    ("response", "type_"),
    [
        (("m-1", "sent"), "dispatched"),
        (("m-1", "queued"), "dispatched"),
        (("m-1", "unknown"), "dispatched"),
        (("m-1", "rejected"), "rejected"),
        (("m-1", "invalid"), "rejected"),
        (("m-1", "failed"), "failed"),
        ((None, "rejected"), "rejected"),
        ((None, "invalid"), "rejected"),
        ((None, "failed"), "failed"),
    ],
    ids=str,
)
def test_what_a_provider_answers_is_dispatched_rejected_or_failed(response, type_):
    """A send has one of three types; without an id, no provider has accepted the message."""
    assert sent(None, status(ann=response)) == [Sent(recipient="ann@example.org", message_id=response[0], type=type_)]


@pytest.mark.parametrize("response", ["sent", "queued", "unknown", None])
def test_a_recipient_without_an_id_that_was_not_refused_is_left_out(response):
    """Postmark's bulk API answers `unknown` for a Cc, which has not failed; SendGrid may give no id."""
    request = sent(None, status(ann=("m-1", "sent"), bob=(None, response)))
    assert [event.recipient for event in request] == ["ann@example.org"]


def test_an_id_of_zero_is_an_id():
    """Anymail's test backend counts from zero."""
    assert [event.message_id for event in sent(None, status(ann=(0, "sent")))] == [0]


def test_a_message_that_was_not_sent_has_nothing_to_record():
    """Its status has no recipients."""
    assert sent(None, AnymailStatus()) == []


def test_an_address_that_postmark_holds_back_is_rejected_and_the_other_sent():
    """Postmark's response says so in a sentence, which Anymail reads."""
    message = "Message OK, but will not deliver to these inactive addresses: bob@example.org. Inactive recipients are …"
    body = {"ErrorCode": 0, "Message": message, "MessageID": "m-1", "To": f"{ANN}, {BOB}"}
    request = sent(None, send("Postmark", AnymailMessage("Hi", "Hello", "shop@example.com", [ANN, BOB]), body))
    assert {event.recipient: (event.message_id, event.type) for event in request} == {
        ANN: ("m-1", "dispatched"),
        BOB: (None, "rejected"),
    }


def test_a_message_that_mandrill_rejects_is_rejected_under_its_id():
    """Its webhook has the id too."""
    message = AnymailMessage("Hi", "Hello", "shop@example.com", [ANN])
    with contextlib.suppress(AnymailRecipientsRefused):
        send("Mandrill", message, [{"email": ANN, "status": "rejected", "reject_reason": "hard-bounce", "_id": "m-1"}])
    assert sent(message, message.anymail_status) == [Sent(recipient=ANN, message_id="m-1", type="rejected")]


def test_a_batch_of_brevo_is_sent_under_one_id_for_each_to():
    """`merge_data` makes it a batch; each Cc gets a copy without an id of its own."""
    message = AnymailMessage("Hi", "Hello", "shop@example.com", [ANN, BOB], cc=["c@example.org"], merge_data={})
    request = sent(None, send("Brevo", message, {"messageIds": ["<m-1@brevo>", "<m-2@brevo>"]}, status=201))
    assert [(event.recipient, event.message_id) for event in request] == [(ANN, "<m-1@brevo>"), (BOB, "<m-2@brevo>")]
