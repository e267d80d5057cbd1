"""The cost of one request: bounded before its signature is checked, linear after it. CPU time is measured."""

import hmac
import json
import math

import pytest

import senders
from mailglass_reconcile import WebhookEvent
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.registry import MAX_BYTES
from mailglass_reconcile.record.webhooks import validate_events
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.webhooks import InvalidWebhookError, SignatureError, parse, verify
from marking import nightly_unless, slow_unless
from meter import cpu
from senders import KEY, MANDRILL_URL, NOW, notification, secret_of, url_of

pytestmark = pytest.mark.version_independent

KB, MB = 1024, 1024 * 1024
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(autouse=True)
def certificates(monkeypatch):
    """Let certificates come from a function of tests."""
    monkeypatch.setattr(sns, "fetch", senders.serve_certificate)


def check_refused(provider: str, body: bytes, content_type: str = "application/json", **headers: str) -> None:
    """Verify an unsigned request, which must fail."""
    sent = {"Content-Type": content_type, **headers}
    with pytest.raises((SignatureError, InvalidWebhookError)):
        verify(provider, body, sent, secret=secret_of(provider), url=url_of(provider), now=NOW)


def repeat_piece(piece: bytes, size: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a body of at most *size* bytes that repeats a piece."""
    return before + piece * ((size - len(before) - len(after)) // len(piece)) + after


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=x"])
def test_a_form_of_mailguns_is_refused_without_being_parsed(content_type):
    """Legacy webhooks have been read-only since April 2023; the error names the page for new ones."""
    body = repeat_piece(b"a=1&", 256 * KB)
    assert cpu(lambda: check_refused("mailgun", body, content_type), 0.01) < 0.01
    with pytest.raises(SignatureError, match="Send, Webhooks of Mailgun's console"):
        verify("mailgun", body, {"Content-Type": content_type}, secret=secret_of("mailgun"))
    with pytest.raises(InvalidWebhookError, match="Send, Webhooks of Mailgun's console"):
        parse("mailgun", body, content_type=content_type)


BODIES = {
    "empty lists": repeat_piece(b"[],", 256 * KB, b'{"a":[', b"0]}"),
    "cut off": repeat_piece(b"[],", 256 * KB, b'{"a":['),
    "deep": repeat_piece(b"[", 256 * KB),
    "deep and broad": repeat_piece(b"[],", 256 * KB, b'{"a":' + b"[" * 90, b"0" + b"]" * 90 + b"}"),
    "numbers": repeat_piece(b"0,", 256 * KB, b'{"a":[', b"0]}"),
    "texts": repeat_piece(b'"",', 256 * KB, b'{"a":[', b"0]}"),
    "long numbers": repeat_piece(b"9" * 4_000 + b",", 256 * KB, b'{"a":[', b"0]}"),
}
QUICK = ("cut off", "deep and broad")


@pytest.mark.parametrize("kind", nightly_unless("empty lists".__eq__, BODIES, is_quick=QUICK.__contains__))
@pytest.mark.parametrize("provider", ["ses", "scaleway", "mailgun"])
def test_an_unsigned_body_that_has_to_be_parsed_costs_at_most_100_ms(provider, kind):
    """The bodies are the longest that are parsed."""
    assert cpu(lambda: check_refused(provider, BODIES[kind]), 0.1) < 0.1


@pytest.mark.parametrize("provider", ["mailersend", "mailtrap", "resend", "sendgrid", "postal", "unisender_go"])
def test_an_unsigned_body_whose_signature_is_over_its_bytes_costs_at_most_100_ms(provider):
    """It is not parsed, although it has every header of a signature."""
    body = repeat_piece(b"[],", MAX_BYTES, b'{"auth":"' + b"0" * 32 + b'","a":[', b"0]}")
    signed = senders.sign_request(provider, b"{}").headers
    assert cpu(lambda: check_refused(provider, body, **{**signed, "Content-Type": "application/json"}), 0.1) < 0.1


def test_a_ping_signed_with_the_public_secret_is_parsed_only_if_it_is_short():
    """MailerSend's documentation has the secret."""
    from mailglass_reconcile.providers.builtin import mailersend  # noqa: PLC0415

    body = repeat_piece(b"[],", MAX_BYTES, b'{"type":"webhook.test","a":[', b"0]}")
    short = b'{"type":"webhook.test"}'
    signatures = [
        hmac.new(mailersend.TEST_SECRET.encode(), signed_body, "sha256").hexdigest() for signed_body in (short, body)
    ]
    verify("mailersend", short, {"Signature": signatures[0]}, secret=KEY)
    assert cpu(lambda: check_refused("mailersend", body, Signature=signatures[1]), 0.1) < 0.1


@pytest.mark.parametrize("piece", [b"%22", b"%C3", b"%41abc", b"%", b"+", b"a", b"\xc3\xa9%41", b"&a=%41"])
@pytest.mark.parametrize("provider", ["mandrill", "zeptomail"])
def test_an_unsigned_form_costs_at_most_200_ms(provider, piece):
    """It is decoded, but its JSON is parsed only once the signature is right."""
    body = repeat_piece(piece, MAX_BYTES, b"mandrill_events=")
    headers = {**senders.sign_request(provider, b"{}").headers, "Content-Type": FORM}
    assert cpu(lambda: check_refused(provider, body, **headers), 0.2) < 0.2


@pytest.mark.parametrize("provider", registry.PROVIDERS)
def test_a_body_above_its_providers_limit_is_not_verified(provider):
    """The limit is 5 MB, or 256 kB if bodies have to be parsed and real ones are small."""
    small = 256 * KB if provider in ("ses", "scaleway", "mailgun") else MAX_BYTES
    with pytest.raises(InvalidWebhookError, match="large"):
        verify(provider, bytes(small + 1), {}, secret=secret_of(provider), url=MANDRILL_URL)
    with pytest.raises(InvalidWebhookError, match="5 MB"):
        parse(provider, bytes(MAX_BYTES + 1))


@pytest.mark.parametrize("provider", ["unisender_go", "zeptomail"])
def test_a_long_body_whose_signature_takes_long_is_not_verified_on_the_event_loop(provider):
    """Four MD5 of one; the decoding of the other, if it is a form."""
    definition = registry.get_provider(provider)
    assert registry.is_immediate(definition, MB)
    assert not registry.is_immediate(definition, MB + 1)


def test_json_of_101_levels_is_refused_and_of_100_is_read():
    """Later code walks through it and must not raise a RecursionError."""
    for depth, right in [(98, True), (99, False)]:
        payload = b'[{"event": "open", "sg_message_id": "a", "deep": ' + b"[" * depth + b"]" * depth + b"}]"
        if right:
            assert parse("sendgrid", payload)
        else:
            with pytest.raises(InvalidWebhookError, match="100 levels"):
                parse("sendgrid", payload)


# After the signature ----------------------------------------------------------------------------------------------


def smtp_id(size: int) -> None:
    """Read an event of SendGrid with a long `smtp-id`."""
    parse("sendgrid", json.dumps([{"event": "bounce", "smtp-id": "<a@" + "ismtpd" * size}]).encode())


def recipients(size: int) -> None:
    """Read a notification of SES with many recipients and as many headers."""
    mail = {
        "messageId": "1",
        "destination": [f"{n}@example.org" for n in range(size)],
        "headers": [{"name": "X-Tag", "value": f"{n}"} for n in range(size)],
    }
    request = notification("ses", {"Type": "Notification", "Message": json.dumps({"eventType": "Send", "mail": mail})})
    parse("ses", request.body, request.headers)


def validate_under_one_id(size: int) -> None:
    """Validate many different events under one id."""
    validate_events("acme", "sendgrid", [event(n) for n in range(size)], strict=False)


def event(number: int) -> WebhookEvent:
    """Return an event that differs from others in its message only."""
    return WebhookEvent(type="opened", occurred_at=NOW, provider_event_id="one", message_id=str(number))


@pytest.mark.parametrize(
    ("work", "size"),
    slow_unless((smtp_id, 1_000).__eq__, [(smtp_id, 1_000), (recipients, 200), (validate_under_one_id, 200)]),
)
def test_twice_the_input_costs_twice_the_cpu(work, size):
    """It was once four times as much; the limit lies between."""
    base = double = math.inf
    for _ in range(6):  # in turns, because a busy machine is slow for a while
        base, double = min(base, cpu(lambda: work(4 * size))), min(double, cpu(lambda: work(8 * size)))
    assert double < 3 * base, (base, double)


def test_names_of_providers_are_not_kept():
    """Anybody may request any path; 4,096 names of any length were once kept."""
    import tracemalloc  # noqa: PLC0415 - slows down what runs while it is on

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            assert not registry.is_known(f"{number}" + "x" * 20_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
    assert provider_rules.canonical(" Amazon SES") == "ses"
