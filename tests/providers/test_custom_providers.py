"""A provider with an application's reader is served like any other."""

import datetime as dt
import os
import sys
from importlib import import_module

import httpx
import pytest
from pydantic import SecretStr

import mailglass_reconcile
import processes
from mailglass_reconcile import ConfigurationError, Sent, WebhookEvent, broadcast, record_send
from mailglass_reconcile.cli import main
from mailglass_reconcile.providers import registry
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.webhooks import (
    InvalidWebhookError,
    SignatureError,
    parse,
    receive,
    verify,
    webhook_app,
    webhook_reader,
)
from receivers import mount_receiver, post, receiving, setting

pytestmark = pytest.mark.version_independent

STATE = "SELECT last_event_type FROM mailglass_deliveries"
COUNT = "SELECT count(*) FROM mailglass_events WHERE type <> 'dispatched'"


@pytest.fixture
def carrier(monkeypatch):
    """Import the module with the reader for this test, and unregister its reader and rule afterwards."""
    monkeypatch.setattr(registry, "_custom_providers", dict(registry._custom_providers))
    monkeypatch.setattr(provider_rules, "_rules", dict(provider_rules._rules))
    monkeypatch.delitem(sys.modules, "carrier", raising=False)
    yield import_module("carrier")
    monkeypatch.delitem(sys.modules, "carrier", raising=False)


def record_carrier_send(db) -> None:
    """Record the send of the webhook's message."""
    with db.engine.begin() as connection:
        recorded = record_send(
            connection, provider="carrier", sent=[Sent(recipient="ada@example.com", message_id="r-1")]
        )
    broadcast(recorded)


def test_it_is_parsed_and_verified(carrier):
    """Names of headers and of the provider ignore case."""
    request = carrier.make_signed_request()
    (event,) = parse("Carrier", request.body, request.headers)
    assert (event.type, event.recipient) == ("delivered", "ada@example.com")
    verify("carrier", request.body, request.headers, secret=f" {carrier.SECRET} ")
    wrong = (
        carrier.make_signed_request(secret="boo"),  # noqa: S106
        carrier.Posted(request.body, {}),
        carrier.Posted(b"{}", request.headers),
    )
    for wrong_request in wrong:
        with pytest.raises(SignatureError):
            verify("carrier", wrong_request.body, wrong_request.headers, secret=carrier.SECRET)
    with pytest.raises(ConfigurationError, match="carrier: the secret is empty"):
        verify("carrier", request.body, request.headers, secret="")


def test_it_is_received_in_a_transaction_and_linked_by_a_rule_for_its_nested_id(db, carrier):
    """The setting has its secret."""
    record_carrier_send(db)
    setting(db, "carrier=coo")
    request = carrier.make_signed_request()
    with db.engine.begin() as connection:
        (recorded,) = receive(connection, "carrier", request.body, request.headers)
    assert recorded.delivery_id
    assert db.value(STATE) == "delivered"


def test_an_event_whose_id_is_in_its_metadata_only_is_received(db, carrier):
    """It needs no recipient: the rule finds its delivery."""
    record_carrier_send(db)
    request = carrier.make_signed_request(carrier.BODY.replace(b', "to": "ada@example.com"', b""))
    with db.engine.begin() as connection:
        (recorded,) = receive(connection, "carrier", request.body, request.headers, secret=carrier.SECRET)
    assert recorded.delivery_id
    assert db.value(STATE) == "delivered"


def test_an_application_answers_its_webhooks_like_any_other(db, caplog, carrier):
    """A body that the reader cannot read is 400, one that it cannot verify 401, without a traceback."""
    receiver = mount_receiver(secrets={"carrier": ["old", "coo"]})
    big = carrier.make_signed_request(b"[" + b" " * registry.MAX_BYTES + b"]")
    requests = {
        200: [carrier.make_signed_request(), carrier.make_signed_request()],
        400: [
            carrier.make_signed_request(b"{"),
            carrier.make_signed_request(b'{"to": 7}'),
            carrier.make_signed_request(**{"X-Carrier-Type": "c4n4ry"}),
        ],
        401: [
            carrier.make_signed_request(secret="boo"),  # noqa: S106  # noqa: S106
            carrier.Posted(carrier.BODY, {}),
            carrier.Posted(carrier.BODY, {"X-Carrier-Signature": b"\xe9"}),
        ],
        413: [big],
    }
    for status, requests_of_status in requests.items():
        answers = post(receiver, "/webhooks/carrier", *requests_of_status)
        assert [answer.status_code for answer in answers] == [status] * len(requests_of_status), status
    assert db.value(COUNT) == 1
    assert "c4n4ry" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_reader_that_cannot_reach_a_server_lets_the_provider_retry(db, carrier):
    """A missing certificate is no wrong signature."""

    def unreachable(body, headers, *, secret, url, now):
        raise TimeoutError

    webhook_reader("gull", read=lambda body, headers: [], verify=unreachable)
    (answer,) = post(mount_receiver(secrets={"gull": "k"}), "/webhooks/gull", carrier.make_signed_request())
    assert answer.status_code == 503


@pytest.mark.parametrize("returned", [None, [{"type": "delivered"}], 7])
def test_a_readers_value_that_is_no_event_is_skipped(returned, carrier):
    """A bug in the reader loses no other event, and the log says where to look."""
    webhook_reader("gull", read=lambda body, headers: returned, verify=carrier.verify)
    with pytest.raises(InvalidWebhookError):
        parse("gull", b"")


def test_an_event_that_names_no_message_is_warned_of_by_the_provider_s_name(caplog, carrier):
    now = dt.datetime.now(dt.UTC)
    event = WebhookEvent(type="opened", occurred_at=now, provider_event_id=1, message_id=None)
    webhook_reader("gull-2", read=lambda body, headers: [event], verify=carrier.verify)
    assert parse("gull-2", b"") == []
    assert "an event of gull-2 (opened) has neither" in caplog.text


def test_a_coroutine_function_is_refused(carrier):
    """Without await, it would accept every signature."""

    async def check(body, headers, **more):
        raise SignatureError

    with pytest.raises(TypeError, match="not async def"):
        webhook_reader("gull", read=carrier.read, verify=check)


@pytest.mark.parametrize("name", ["", "a/b", "a=b", "a,b", "a b", "é", "x" * 65, "-a", "Amazon SES", "postmark"])
def test_an_invalid_or_registered_name_is_refused(name, carrier):
    """The name is the last part of a URL, and a key in the setting of secrets."""
    with pytest.raises(ValueError, match=r"name of a reader|read by this package"):
        webhook_reader(name, read=carrier.read, verify=carrier.verify)


DJANGO = """
import django
from django.conf import settings
settings.configure(
    ALLOWED_HOSTS=["testserver"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "nowhere"}},
    INSTALLED_APPS=["mailglass_reconcile.contrib.django"],
    ROOT_URLCONF="mailglass_reconcile.contrib.django.urls",
)
django.setup()
from django.test import Client
"""
SESSION = """
from mailglass_reconcile.receiver.receiving import receive
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
SESSION = Session(create_engine("postgresql+psycopg://nobody@nowhere/none"))
"""
FIRST_IMPORTS = {
    "parse": "from mailglass_reconcile.webhooks import parse; print(parse('carrier', BODY)[0].type)",
    "verify": "from mailglass_reconcile.webhooks import verify; print(verify('carrier', BODY, HEADERS, secret='coo'))",
    "receive": f"{SESSION}receive(SESSION, 'carrier', BODY, {{}})",
    "webhook_app": "from mailglass_reconcile.receiver.app import webhook_app; print(webhook_app())",
    "Django's view": f"{DJANGO}print(Client().post('/carrier', BODY, 'text/plain').status_code)",
    "GET to Django's view": f"{DJANGO}print(Client().get('/carrier').status_code)",
    "Anymail": "from mailglass_reconcile.contrib import anymail; anymail.registry.load_provider('carrier')",
}
OUTPUTS = {
    "parse": "delivered",
    "verify": "None",
    "receive": "SignatureError: the signature cannot be checked (KeyError)",
    "webhook_app": "Receiver object",
    "Django's view": "401",
    "GET to Django's view": "200",
    "Anymail": "",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Django's view" else pytest.mark.nightly) for name in FIRST_IMPORTS]
)
def test_whatever_is_imported_first_knows_it_through_the_setting(name, carrier):
    """The process imports nothing of it itself, and one module of ours."""
    request = carrier.make_signed_request()
    env = {**os.environ, "MAILGLASS_IMPORTS": "carrier", "MAILGLASS_WEBHOOK_SECRETS": "carrier=coo"}
    env |= {"PYTHONPATH": "tests/support", "MAILGLASS_DATABASE_URL": "postgresql://nobody@nowhere/none"}
    code = f"BODY, HEADERS = {request.body!r}, {request.headers!r}\n{FIRST_IMPORTS[name]}"
    result = processes.run(["-c", code], env)
    assert OUTPUTS[name] in result.stdout + result.stderr
    assert result.returncode == (name == "receive"), result.stderr


@pytest.fixture
def unloaded(db, monkeypatch, carrier):
    """Let only the settings name the module."""
    monkeypatch.setattr(registry, "_custom_providers", {})
    monkeypatch.delitem(sys.modules, "carrier")
    settings = db.settings.model_copy(update={"imports": "carrier", "webhook_secrets": SecretStr("carrier=coo")})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    return carrier


def test_an_application_loads_it_at_startup(unloaded):
    """A secret may name a provider that is not registered yet."""
    assert [response.status_code for response in post(webhook_app(), "/carrier", unloaded.make_signed_request())] == [
        200
    ]


def test_a_function_loads_it_on_first_use(unloaded):
    assert parse("carrier", unloaded.make_signed_request().body)[0].type == "delivered"


def test_trigger_says_that_it_has_no_sample_of_it(unloaded, capsys):
    """Nothing else has imported the module."""
    with pytest.raises(SystemExit) as error:
        main(["trigger", "carrier", "delivered", "--message-id", "m-1", "--to", "http://127.0.0.1:1/carrier"])
    assert error.value.code == 1
    assert "carrier is read by a reader of your own, and there is no sample" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_it(db, tmp_path, carrier):
    """It is served over HTTP, and linked by the rule of the same module."""
    record_carrier_send(db)
    request = carrier.make_signed_request()
    with receiving(
        db, tmp_path,
        MAILGLASS_IMPORTS="canned_certificates,carrier", MAILGLASS_WEBHOOK_SECRETS="carrier=coo",
    ) as (base, process):  # fmt: skip
        answer = httpx.post(f"{base}/carrier", content=request.body, headers=request.headers)
        assert answer.status_code == 200, process.stderr
    assert db.value(STATE) == "delivered"
