"""Anymail's tracking events as `WebhookEvent`: each type of each provider, posted to Anymail's own views."""

import datetime as dt
import itertools
import json
from types import SimpleNamespace

import pytest

from anymail_webhooks import (
    ALL,
    BEGIN,
    MAILERSEND,
    MAILGUN,
    MAILJET,
    MANDRILL,
    POSTMARK,
    RESEND,
    SENDGRID,
    SES,
)
from mailglass_reconcile.contrib.anymail import webhook_event
from mailglass_reconcile.providers import formats
from mailglass_reconcile.record.webhooks import validate_events
from mailglass_reconcile.rules import log_throttle
from mailglass_reconcile.webhooks import parse
from senders import NOW, load_payloads, make_bodies, sign_request

pytestmark = [
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support"),
    pytest.mark.python_dependent,
]

ANN = "Ann@example.org"
BOB = "bob@example.org"
EVERY_PROVIDER = pytest.mark.parametrize("provider", [pytest.param(provider, id=provider.esp_name) for provider in ALL])


def payload(provider, type_, to=ANN, n=0):
    """Return the payload of an event."""
    return provider.event(type_, provider.message_id, to, n)


@pytest.fixture
def events_of(post):
    """Return a function that posts payloads and returns the `WebhookEvent`s that arrive."""

    def events_of(provider, *payloads):
        return [webhook_event(*heard) for heard in post(provider.requests(payloads))]

    return events_of


def ids(events):
    """Return the events' ids in order."""
    return [event.provider_event_id for event in events]


@EVERY_PROVIDER
def test_an_event_of_every_type_can_be_recorded_and_is_what_our_own_reader_reads(post, provider):
    """Type, message id, recipient and time agree; `providers/test_parsing.py` compares whole documented payloads."""
    for type_ in provider.types:
        (request,) = provider.requests([payload(provider, type_, n=90)])
        (event,) = [webhook_event(*heard) for heard in post([request])]
        assert (event.type, event.message_id, event.recipient) == (type_, provider.message_id, ANN)
        assert int(event.occurred_at.timestamp()) == BEGIN + 90, type_
        assert validate_events("acme", provider.esp_name, [event], strict=False)
        parsed = parse(provider.name, request["data"], request["headers"], content_type=request["content_type"])
        assert parsed == [event], type_


@EVERY_PROVIDER
def test_events_differ_by_type_time_and_recipient(events_of, provider):
    """Two opens, clicks or recipients are events of their own, in one batch or in several requests."""
    payloads = [payload(provider, *variant) for variant in itertools.product(provider.types, [ANN, BOB], [0, 60])]
    if provider is MANDRILL:  # each recipient has a message id
        payloads = [sample | {"_id": f"{sample['_id']}{sample['msg']['email']}"} for sample in payloads]
    assert len(set(ids(events_of(provider, *payloads)))) == len(payloads)


def sign_twice(provider, event):
    """Return two requests with one event, like a provider's retry with a new signature."""
    (body,) = make_bodies(provider.name, [event])
    later = NOW + dt.timedelta(seconds=60)
    return [sign_request(provider.name, body, at).for_anymail(provider.path) for at in (NOW, later)]


def test_a_signature_made_anew_is_still_the_same_event_of_mailgun(post):
    """Anymail's id is the signature's token, which belongs to the request, so it is not used."""
    heard = post(sign_twice(MAILGUN, payload(MAILGUN, "opened")))
    assert len({event.event_id for event, _ in heard}) == 2
    assert len({webhook_event(*signal).provider_event_id for signal in heard}) == 1


def test_a_request_dated_anew_is_still_the_same_event_of_mailersend(post):
    """The activity within has an id of its own."""
    event = payload(MAILERSEND, "opened")
    heard = post(MAILERSEND.requests([event]) + MAILERSEND.requests([event | {"created_at": "2026-03-02T00:00:00Z"}]))
    assert len({webhook_event(*signal).provider_event_id for signal in heard}) == 1


def test_a_legacy_form_of_mailgun_has_what_anymail_reads(post):
    """We do not read it any more; its token is its only id, and nothing else distinguishes two opens."""
    form = {"event": "opened", "recipient": ANN, "message-id": "<m@example.com>", "timestamp": str(BEGIN)}
    signatures = [json.loads(request["data"])["signature"] for request in sign_twice(MAILGUN, {})]
    requests = [{"path": MAILGUN.path, "data": {**form, **signatures[attempt]}, "headers": {}} for attempt in (0, 0, 1)]
    first, retried, second = [webhook_event(*signal) for signal in post(requests)]
    assert first.provider_event_id == retried.provider_event_id != second.provider_event_id
    assert (first.type, first.message_id, first.recipient) == ("opened", "<m@example.com>", ANN)


@pytest.mark.parametrize("type_", SES.types)
def test_a_notification_of_ses_is_an_event_for_each_of_its_recipients(events_of, type_):
    """They share the notification's id and differ by their position in it."""
    events = events_of(SES, payload(SES, type_, to=[f'"Ann, A." <{ANN}>', BOB]))
    assert [validate_events("acme", "ses", [event], strict=False)[0].keys.recipient for event in events] == [
        ANN.lower(),
        BOB,
    ]
    notification, places = zip(*(id_.split("/") for id_ in ids(events)), strict=True)
    assert len(set(notification)) == 1
    assert places == ("0", "1")


def test_a_bounce_that_ses_reports_for_a_message_to_one_address_is_that_address_s(events_of):
    """A forwarding server lets another address bounce; of several recipients, SES names the right one."""
    bounced = payload(SES, "bounced", to=[ANN])
    bounced["bounce"]["bouncedRecipients"][0]["emailAddress"] = BOB
    assert [event.recipient for event in events_of(SES, bounced)] == [ANN]
    bounced["mail"]["destination"] = [ANN, BOB]
    assert [event.recipient for event in events_of(SES, bounced)] == [BOB]


def test_a_recipient_that_ses_names_twice_is_one_event(events_of):
    """To and Cc may have the same address."""
    assert len(set(ids(events_of(SES, payload(SES, "opened", to=[ANN, f"Ann <{ANN.lower()}>"]))))) == 1


@pytest.mark.parametrize("header", ["to", "cc", "bcc"])
@pytest.mark.parametrize("type_", RESEND.types)
def test_resend_does_not_say_whom_of_several_an_event_is_about(events_of, type_, header):
    """Anymail takes the first recipient, which may be wrong."""
    sample = payload(RESEND, type_)
    sample["data"][header] = [*sample["data"].get(header, []), BOB]
    (event,) = events_of(RESEND, sample)
    assert event.recipient is None


def test_an_event_of_resend_without_the_header_of_svix_has_a_digest_of_its_contents(post):
    """A proxy may drop the header."""
    payloads = [payload(RESEND, "opened", n=n) for n in (0, 60)]
    requests = [{**request, "headers": {}} for request in RESEND.requests(payloads)]
    first = [webhook_event(*signal).provider_event_id for signal in post(requests)]
    assert [webhook_event(*signal).provider_event_id for signal in post(requests)] == first
    assert len(set(first)) == 2


def test_postmarks_id_of_a_bounce_is_used_and_other_events_have_a_digest(events_of):
    """`kind:MessageID` would drop the second open."""
    payloads = [payload(POSTMARK, "bounced"), payload(POSTMARK, "opened"), payload(POSTMARK, "opened", n=60)]
    bounce, first, second = events_of(POSTMARK, *payloads)
    assert bounce.provider_event_id == str(payloads[0]["ID"])
    assert first.provider_event_id != second.provider_event_id
    assert {len(first.provider_event_id), len(second.provider_event_id)} == {64}


def test_sendgrid_leaves_out_its_id_of_some_events_which_then_have_a_digest(events_of):
    """Some unsubscribes lack it."""
    payloads = [payload(SENDGRID, "unsubscribed", to) for to in (ANN, BOB)]
    for sample in payloads:
        del sample["sg_event_id"]
    first = ids(events_of(SENDGRID, *payloads))
    assert len(set(first)) == 2
    assert first == ids(events_of(SENDGRID, *payloads))


@pytest.mark.parametrize(
    ("provider", "type_", "field"),
    [(POSTMARK, "clicked", "ReceivedAt"), (MANDRILL, "opened", "ts"), (MAILJET, "opened", "time")],
    ids=["Postmark", "Mandrill", "Mailjet"],
)
def test_an_event_without_a_time_happened_now_and_is_the_same_when_it_is_sent_again(events_of, provider, type_, field):
    """The time differs on a retry, so the id does not depend on it."""
    sample = payload(provider, type_)
    del sample[field]
    (first,), (second,) = events_of(provider, sample), events_of(provider, sample)
    assert dt.datetime.now(dt.UTC) - first.occurred_at < dt.timedelta(minutes=1)
    assert first.occurred_at.utcoffset() == dt.timedelta(0)
    assert first.provider_event_id == second.provider_event_id


def bare(**fields):
    """Return an event like that of an adopter's test, without a provider's fields."""
    defaults = {
        "event_type": "opened",
        "timestamp": dt.datetime.fromtimestamp(BEGIN, dt.UTC),
        "event_id": None,
        "esp_event": None,
        "message_id": "m-1",
        "recipient": ANN,
        "reject_reason": None,
        "tags": [],
    }
    return SimpleNamespace(**{**defaults, **fields})


@EVERY_PROVIDER
def test_an_event_that_is_made_by_hand_needs_nothing_of_the_providers(provider):
    """Different events have different ids, and equal ones the same."""
    later = dt.datetime.fromtimestamp(BEGIN + 60, dt.UTC)
    events = [bare(), bare(), bare(timestamp=later), bare(recipient=BOB), bare(message_id="m-2")]
    result = ids(webhook_event(event, provider.esp_name) for event in events)
    assert result[0] == result[1]
    assert len(set(result)) == 4


def test_types_and_reasons_that_are_not_known_are_recorded_as_such():
    """A later Anymail may have other types; the webhook must not be lost."""
    event = webhook_event(bare(event_type="inbound_failed", reject_reason="moved"), "Postmark")
    assert (event.type, event.reject_reason) == ("unknown", "other")


def test_a_time_without_a_zone_is_taken_as_utc():
    """The writer refuses such a time, and the provider would send the event again for ever."""
    event = webhook_event(bare(timestamp=dt.datetime(2026, 3, 1, 12)), "Postmark")
    assert event.occurred_at == dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("tags", "stored"),
    [
        (["a", "b"], ["a", "b"]),
        ("one", ["one"]),
        ([None], None),
        (None, None),
        (["", "a", ANN, "to:x%40example.org"], ["a"]),
    ],
    ids=["several", "a single text", "Postal without", "SparkPost without", "addresses"],
)
def test_tags_are_kept_unless_they_look_like_an_address(tags, stored):
    """SendGrid's `category` may be a text, Postal's a list of None."""
    assert webhook_event(bare(tags=tags), "SendGrid").metadata.get("tags") == stored


def test_an_event_of_mailersends_webhooks_2_is_read_although_anymail_finds_neither_id_nor_recipient(post):
    """Anymail 15.2 reads version 1 only."""
    sample = next(sample.payload for sample in load_payloads("mailersend") if "message_id" in sample.payload["data"])
    request = sign_request("mailersend", json.dumps(sample).encode())
    ((event, esp_name),) = post([request.for_anymail(MAILERSEND.path)])
    assert (event.message_id, event.recipient) == (None, None)
    converted = webhook_event(event, esp_name)
    assert (converted.message_id, converted.recipient) == (sample["data"]["message_id"], sample["data"]["recipient"])
    assert converted.occurred_at.isoformat() == "2026-09-12T18:42:10+00:00"
    assert converted.provider_event_id == sample["data"]["id"]


def test_an_event_of_sendgrid_that_was_not_sent_through_anymail_has_the_id_of_the_send(post):
    """It has `sg_message_id` only, not Anymail's own id."""
    sample = {
        "email": ANN,
        "timestamp": BEGIN,
        "event": "delivered",
        "sg_event_id": "ev-1",
        "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
    }
    ((event, esp_name),) = post(SENDGRID.requests([sample]))
    assert event.message_id is None
    converted = webhook_event(event, esp_name)
    assert (converted.type, converted.message_id, converted.recipient) == ("delivered", "14c5d75ce93.dfd.64b469", ANN)


def test_an_event_in_which_nothing_finds_its_delivery_is_warned_of(caplog, monkeypatch):
    """Our receiver warns too, because the format must have changed."""
    monkeypatch.setattr(formats, "_throttle", log_throttle.LogThrottle())
    webhook_event(bare(message_id=None, recipient=None), "Postmark")
    assert "an event of postmark (opened) has neither a message id nor a recipient" in caplog.text
