"""Fuzzing with any bytes, headers and nesting: a webhook is read and recorded, or refused by one of our errors."""

import asyncio
import contextlib
import datetime as dt
import json
from urllib.parse import parse_qsl, quote_plus, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailglass_reconcile import ConfigurationError
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.providers.wire import WebhookRequest, decode_form_value
from mailglass_reconcile.record import validation
from mailglass_reconcile.record.webhooks import validate_events as check_events
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, parse, verify, webhook_app
from marking import nightly_unless
from senders import (
    MANDRILL_URL,
    Posted,
    load_payloads,
    make_requests,
    secret_of,
    serve_certificate,
    sign_request,
    url_of,
)

pytestmark = pytest.mark.version_independent

COUNT = "SELECT count(*) FROM mailglass_events"
EVERY_PROVIDER = pytest.mark.parametrize("provider", PROVIDERS)
TWO_IN_CI = pytest.mark.parametrize("provider", nightly_unless(("mailgun", "ses").__contains__, PROVIDERS))

TEXTS = st.text(max_size=20) | st.sampled_from(["", " ", "\x00", "\ud800", "a@b.c", "9" * 400, "1e999", "x" * 5_000])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([10**400, -(2**63), 1e308])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Authorization", "Signature", "svix-id", "svix-timestamp", "svix-signature"])
    | st.text(max_size=10),
    st.sampled_from(["application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "é"])
    | st.text(max_size=20),
    max_size=4,
)
PATIENT = settings(max_examples=40, deadline=None, derandomize=True)
FEW = settings(PATIENT, max_examples=10)


@st.composite
def twisted_payloads(draw, provider):
    """Return a documented payload with some values replaced at any depth."""
    payload = json.loads(json.dumps(draw(st.sampled_from(load_payloads(provider))).payload))
    for _ in range(draw(st.integers(1, 3))):
        place = payload
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
                place[key] = draw(VALUES)
                break
            place = place[key]
    return payload


def read(provider, body, headers):
    """Read a body as a receiver does, and validate its events."""
    with contextlib.suppress(InvalidWebhookError):
        events = parse(provider, body, headers)
        for recorded in check_events("acme", provider, events, strict=False):
            assert "a@b.c" not in json.dumps([recorded.entry.metadata.get("tags"), recorded.entry.idempotency_key])
        return events
    return None


def validate_events(provider, body, headers):
    """Verify a body, which may raise only errors that a receiver answers."""
    with contextlib.suppress(SignatureError, ConfigurationError):
        verify(provider, body, headers, secret=secret_of(provider), url=url_of(provider))


@EVERY_PROVIDER
@FEW
@given(data=st.data())
def test_a_payload_with_anything_in_it_can_be_recorded_or_is_refused(provider, data):
    """Such a payload in a batch does not lose the others."""
    read_twisted(provider, data)


@pytest.mark.slow
@TWO_IN_CI
@PATIENT
@given(data=st.data())
def test_many_payloads_with_anything_in_them_can_be_recorded_or_are_refused(provider, data):
    """More examples are tried."""
    read_twisted(provider, data)


def read_twisted(provider, data):
    """Read a payload with some other values, alone and after a good one."""
    payload = data.draw(twisted_payloads(provider))
    (request,) = make_requests(provider, [payload])
    read(provider, request.body, request.headers)
    good = load_payloads(provider)[0].payload
    requests = make_requests(provider, [good, payload])
    event_lists = [read(provider, request.body, request.headers) for request in requests]
    assert event_lists[0]
    assert event_lists[0][0].type == load_payloads(provider)[0].type


@PATIENT
@given(fields=st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=20)), max_size=3))
def test_a_form_is_decoded_as_urllib_encodes_it(fields):
    """A value of it too, which may be any bytes."""
    body = urlencode(fields, errors="replace").encode()
    request = WebhookRequest(body, {})
    assert request.form == parse_qsl(body.decode(), keep_blank_values=True)
    for _, value in fields:
        content = value.encode("utf-16", "replace")
        assert decode_form_value(quote_plus(content).encode()) == content


@pytest.mark.parametrize("body", [b"a=%", b"a=%4", b"a=%4g", b"a=%%41", b"a=\xc3\xa9", b"a&" * 1_000])
def test_a_body_that_is_no_form_is_refused(body):
    """An escape is cut off, a byte is not encoded, or it has too many fields."""
    with pytest.raises(InvalidWebhookError, match=r"form|percent-encoded"):
        _ = WebhookRequest(body, {}).form


@pytest.mark.slow
@TWO_IN_CI
@PATIENT
@given(body=VALUES.map(lambda value: json.dumps(value).encode()), headers=HEADERS)
def test_any_json_is_read_or_refused(provider, body, headers):
    """It may be signed or not."""
    read(provider, body, headers)
    validate_events(provider, body, headers)
    request = sign_request(provider, body)
    read(provider, request.body, request.headers)


@pytest.mark.slow
@TWO_IN_CI
@PATIENT
@given(body=st.binary(max_size=200), headers=HEADERS)
def test_any_bytes_are_read_or_refused(provider, body, headers):
    """Headers may be anything."""
    read(provider, body, headers)
    validate_events(provider, body, headers)


@pytest.mark.slow
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_request_is_answered_below_500_and_no_event_is_lost(db, application, data):
    """What can be read is in the ledger after a 200."""
    provider = data.draw(st.sampled_from(PROVIDERS))
    now = dt.datetime.now(dt.UTC)
    body = data.draw(st.binary(max_size=50) | VALUES.map(lambda value: json.dumps(value).encode()))
    requests = [sign_request(provider, body, now), Posted(body, data.draw(HEADERS))]
    requests += make_requests(provider, [data.draw(twisted_payloads(provider))], now)
    for request in requests:
        headers = [(k.encode("utf-8", "replace"), v.encode("utf-8", "replace")) for k, v in request.headers.items()]
        before = db.value(COUNT)
        status = answer(application, f"/{provider}", request.body, headers)
        assert status < 500 or status == registry.get_provider(provider).rejection_status
        if status == 200:
            ids = {event.provider_event_id for event in parse(provider, request.body, request.headers)}
            assert db.value(COUNT) - before <= len(ids) + 1
            count_ids = "SELECT count(DISTINCT metadata ->> 'provider_event_id') FROM mailglass_events WHERE"
            stored = [validation.replace_unstorable(id_)[:512] for id_ in ids]
            assert db.value(f"{count_ids} metadata ->> 'provider_event_id' = ANY(:ids)", ids=stored) == len(set(stored))
        else:
            assert db.value(COUNT) == before


@pytest.fixture
def application(db):
    """The receiver of all providers."""
    return webhook_app(secrets={provider: secret_of(provider) for provider in PROVIDERS}, url=MANDRILL_URL)


def answer(application, path, body, headers):
    """Return the status of a POST to the application."""
    statuses = []

    async def run():
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}

        async def next_():
            return {"type": "http.request", "body": body, "more_body": False}

        async def note(message):
            statuses.extend([message["status"]] if "status" in message else [])

        await application(scope, next_, note)

    asyncio.run(run())
    return statuses[0]


@pytest.fixture(autouse=True)
def certificates(monkeypatch):
    """Let certificates come from a function of tests."""
    monkeypatch.setattr(sns, "fetch", serve_certificate)
