"""Odd values, such as a list as a type, a missing header or a number as a string, are 401 or 400 with one line."""

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest

import senders
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, parse, verify
from receivers import mount_receiver, now, post
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import Posted, load_payloads, make_requests, secret_of, url_of

pytestmark = pytest.mark.version_independent

EVERY_PROVIDER = pytest.mark.parametrize("provider", PROVIDERS)
ODD = ([], [[]], {}, {"a": []}, 7, -1.5, 10**400, True, None, "", "\x00", "\ud800", "é")
IN_BODY = ("mailgun", "scaleway", "ses", "unisender_go")
COUNT = "SELECT count(*) FROM mailglass_events"


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the paths of all values in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replace_value(value: object, path: tuple, odd: object) -> object:
    """Return JSON with another value at a path."""
    copy = json.loads(json.dumps(value))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = odd
    return copy


@EVERY_PROVIDER
def test_an_odd_value_in_a_signed_body_is_read_or_refused(provider):
    """The value may be anywhere."""
    payload = load_payloads(provider)[0].payload
    for path in places(payload):
        for odd in ODD:
            for request in make_requests(provider, [replace_value(payload, path, odd)]):
                with suppress(InvalidWebhookError):
                    parse(provider, request.body, request.headers)


@pytest.mark.parametrize("provider", IN_BODY)
def test_an_odd_value_in_what_is_signed_is_a_wrong_signature(provider):
    """If the signature is in the body, all of the body is untrusted until it is checked."""
    request = make_requests(provider, [load_payloads(provider)[0].payload])[0]
    body = json.loads(request.body)
    for path in places(body):
        for odd in ODD:
            odd_body = json.dumps(replace_value(body, path, odd)).encode()
            try:
                verify(provider, odd_body, request.headers, secret=secret_of(provider), now=senders.NOW)
            except SignatureError:
                continue
            assert path[0] == "event-data", path  # Mailgun does not sign this part


@EVERY_PROVIDER
def test_a_header_that_is_missing_or_odd_is_a_wrong_signature(provider):
    """Headers in Latin-1, very long or empty ones are tried."""
    request = make_requests(provider, [load_payloads(provider)[0].payload])[0]
    if provider == "postal":  # an older one sends only the second
        request.headers.pop("X-Postal-Signature")
    for name in [name for name in request.headers if name != "Content-Type" and not name.startswith("x-amz-sns")]:
        for odd in (None, "", " ", "é", "\x00", "a" * 10_000, "=" * 400, "9" * 5_000, "nan", "Basic", "v1,"):
            headers = {key: value for key, value in request.headers.items() if key != name}
            with pytest.raises(SignatureError):
                verify(
                    provider, request.body, headers if odd is None else {**headers, name: odd},
                    secret=secret_of(provider), url=url_of(provider), now=senders.NOW,
                )  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "document"),
    [
        ("ses", {"Type": ["Notification"], "TopicArn": senders.ARN}),
        ("scaleway", {"Type": {}, "TopicArn": senders.SCALEWAY_ARN}),
        ("ses", {"Type": "Notification", "TopicArn": [senders.ARN]}),
        ("ses", {"Type": "Notification", "TopicArn": senders.ARN, "SigningCertURL": 7, "Signature": [], "Message": 1}),
        ("mailgun", {"signature": [], "event-data": []}),
        ("mailgun", {"signature": {"timestamp": 1, "token": [], "signature": {}}, "event-data": 7}),
        ("unisender_go", {"auth": ["a"] * 32, "events_by_user": 7}),
    ],
)
def test_over_http_it_is_answered_with_401_and_one_line(db, caplog, provider, document):
    """The provider would repeat a webhook after 503; there is no traceback."""
    request = Posted(json.dumps(document).encode(), {"Content-Type": "application/json"})
    (answer,) = post(mount_receiver(), f"/webhooks/{provider}", request)
    assert (answer.status_code, db.value(COUNT)) == (401, 0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Traceback" not in caplog.text


def test_too_many_odd_tags_cost_their_event_the_last_of_them_and_nothing_else(db, caplog):
    """Fifty tags of control characters, six bytes each as JSON, exceed the metadata of an event."""
    good, large = (dict(load_payloads("sendgrid")[0].payload) for _ in range(2))
    good |= {"category": ["good"], "sg_event_id": "1"}
    large |= {"category": ["\x01" * 1_000] * 49 + ["last"], "sg_event_id": "2"}
    (request,) = make_requests("sendgrid", [good, large], at=now())
    (answer,) = post(mount_receiver(), "/webhooks/sendgrid", request)
    assert answer.status_code == 200, caplog.text
    tags = "SELECT metadata->'tags' FROM mailglass_events ORDER BY metadata->>'provider_event_id'"
    (first,), (second,) = db.rows(tags)
    assert first == ["good"]
    assert second == ["\x01" * 255] * 38
