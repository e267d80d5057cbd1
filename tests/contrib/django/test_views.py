"""Our own webhook view in Django: every provider, verified, in one transaction, whatever the settings."""

import asyncio
import datetime as dt

import pytest
from asgiref.sync import sync_to_async
from django.db import connection as djangos
from django.db import connections
from django.test import AsyncClient, Client, override_settings
from pydantic import SecretStr

import mailglass_reconcile
import senders
from anymail_sends import ANN, Message
from anymail_webhooks import POSTMARK
from mailglass_reconcile import runtime
from mailglass_reconcile.providers import registry, sns
from waiting import wait_until

pytestmark = pytest.mark.python_dependent

EVENTS = "SELECT count(*) FROM mailglass_events"
TRANSACTIONS = "SELECT count(DISTINCT xmin::text) FROM mailglass_events"
OPEN = {"RecordType": "Open", "MessageID": "m-1", "Recipient": ANN}
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON mailglass_events FOR EACH ROW WHEN (NEW.tenant_id = 'umbrella')
EXECUTE FUNCTION refuse()
"""


@pytest.fixture(autouse=True)
def _installed(db, app, backends, monkeypatch):
    """Install our view with a secret for each provider."""
    monkeypatch.setattr(sns, "fetch", senders.serve_certificate)
    monkeypatch.setattr(sns, "certificates", type(sns.certificates)())
    secrets = ",".join(f"{name}={senders.secret_of(name)}" for name in registry.PROVIDERS)
    arguments = {"webhook_secrets": SecretStr(secrets), "webhook_url": SecretStr(senders.MANDRILL_URL)}
    mailglass_reconcile.configure(settings=db.settings.model_copy(update=arguments))
    with override_settings(ROOT_URLCONF="webhook_urls"):
        yield
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


def post_over_wsgi(**request):
    """Post a webhook to a project that checks CSRF tokens elsewhere."""
    return Client(raise_request_exception=False, enforce_csrf_checks=True).post(**request)


def post_over_asgi(**request):
    """Post through Django's ASGI handler, whose views run in a thread of asgiref's."""

    async def post():
        try:
            return await AsyncClient(raise_request_exception=False, enforce_csrf_checks=True).post(**request)
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(post())


def make_post(provider, payloads, place=None):
    """Return a signed webhook as arguments of Django's test client."""
    [sent] = senders.make_requests(provider, payloads, at=dt.datetime.now(dt.UTC))
    return sent.for_anymail(place or f"/webhooks/{provider}")


def postmark(event=OPEN, **changes):
    """Return a signed webhook of Postmark."""
    return {**make_post("postmark", [event]), **changes}


@pytest.mark.parametrize("provider", ["postmark", "ses"])
def test_a_webhook_is_recorded_under_asgi(db, provider):
    """The first of SES waits for its certificate."""
    request = make_post(provider, [senders.load_payloads(provider)[0].payload])
    assert post_over_asgi(**request).status_code == 200
    assert db.value(EVENTS) == 1


@pytest.mark.parametrize(("secret", "status"), [(senders.secret_of("azure"), 200), ("wrong", 503)])
def test_event_grid_validates_the_address_by_a_post_or_by_options(db, secret, status):
    """Both its own schema and that of CloudEvents work, only with the secret."""
    data = {"validationCode": "512d38b6", "validationUrl": "https://rp-x.eventgrid.azure.net/validate"}
    validation = [{"id": "1", "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "data": data}]
    headers = {"authorization": secret, "webhook-request-origin": "eventgrid.azure.net"}
    client = Client(raise_request_exception=False, enforce_csrf_checks=True)
    answer = client.post("/webhooks/azure", validation, content_type="application/json", headers=headers)
    assert answer.status_code == status
    assert (answer["Content-Type"], b"512d38b6" in answer.content) == (
        ("application/json", True) if status == 200 else ("text/plain; charset=utf-8", False)
    )
    response = client.options("/webhooks/azure", headers=headers)
    assert response.status_code == status
    assert response.headers.get("WebHook-Allowed-Origin") == ("eventgrid.azure.net" if status == 200 else None)
    assert client.options("/webhooks/postmark", headers=headers).status_code == 405
    assert db.value(EVENTS) == 0


@pytest.mark.parametrize("atomic", [False, True], ids=["", "ATOMIC_REQUESTS"])
def test_all_events_of_a_webhook_are_recorded_in_one_transaction_of_ours(db, monkeypatch, atomic):
    """Each is published; a project's own transaction around each request does not hold ours open."""
    monkeypatch.setitem(djangos.settings_dict, "ATOMIC_REQUESTS", atomic)
    payloads = [{**senders.load_payloads("sendgrid")[0].payload, "sg_event_id": f"e-{n}"} for n in range(5)]
    assert post_over_wsgi(**make_post("sendgrid", payloads)).status_code == 200
    assert (db.value(EVENTS), db.value(TRANSACTIONS)) == (5, 1)


def test_a_webhook_is_verified_before_anything_connects(db):
    """An invalid request costs no connection."""
    connections.close_all()
    assert post_over_wsgi(**postmark(headers={"authorization": "Basic bm86bm8="})).status_code == 401
    assert djangos.connection is None


@pytest.mark.parametrize("place", ["/webhooks/postmark", "/webhooks/postmark/", "/webhooks/Postmark/"])
def test_a_url_works_with_and_without_a_slash_at_its_end(db, place):
    """Providers do not repeat the body after a redirect of APPEND_SLASH."""
    assert post_over_wsgi(**postmark(path=place)).status_code == 200
    assert db.value(EVENTS) == 1


@pytest.mark.parametrize(
    ("method", "place", "status"),
    [("get", "postmark", 200), ("head", "postmark", 200), ("get", "nobody", 404), ("put", "postmark", 405)],
)
def test_other_methods_are_answered_as_the_receiver_does(method, place, status, caplog):
    """Mandrill and Unisender Go send GET or HEAD before they accept a URL; Django would log each with its path."""
    assert [getattr(Client(), method)(f"/webhooks/{place}").status_code for _ in range(2)] == [status] * 2
    assert [record.name.partition(".")[0] for record in caplog.records] == ["mailglass_reconcile"] * (status != 200)


def test_a_large_webhook_is_read_whatever_django_s_limit_is(db):
    """SendGrid's batches exceed DATA_UPLOAD_MAX_MEMORY_SIZE."""
    assert post_over_wsgi(**postmark({**OPEN, "UserAgent": "x" * 4 * 1024 * 1024})).status_code == 200
    assert db.value(EVENTS) == 1


def test_a_file_of_secrets_is_read_once_as_the_application_does(db, tmp_path):
    """To rotate a secret, a person adds the new one and restarts; a file in the middle of a change is not read."""
    file = tmp_path / "secrets"
    file.write_text(f"postmark={senders.AUTH}\n")
    settings = runtime.get_settings().model_copy(update={"webhook_secrets": SecretStr(f"@{file}")})
    mailglass_reconcile.configure(settings=settings)
    assert post_over_wsgi(**postmark()).status_code == 200
    file.unlink()
    assert post_over_wsgi(**postmark({**OPEN, "MessageID": "m-2"})).status_code == 200
    mailglass_reconcile.configure(settings=settings)
    assert post_over_wsgi(**postmark()).status_code == 503
    file.write_text(f"postmark={senders.AUTH}\n")
    assert post_over_wsgi(**postmark()).status_code == 200, "one that was missing is read when it is there"


def tenant_of(event):
    """Return the tenant in an event's tags, like an application's function."""
    return event.tags[0]


def test_the_function_for_tenants_gets_each_event(db):
    """The events of all tenants of a webhook are recorded together or not at all."""
    payload = senders.load_payloads("sendgrid")[0].payload
    payloads = [{**payload, "sg_event_id": f"e-{name}", "category": [name]} for name in ("acme", "umbrella")]
    with override_settings(MAILGLASS_TENANT=tenant_of):
        db.run(REFUSE)
        assert post_over_wsgi(**make_post("sendgrid", payloads)).status_code == 503
        assert db.value(EVENTS) == 0
        db.run("DROP FUNCTION refuse CASCADE")
        assert post_over_wsgi(**make_post("sendgrid", payloads)).status_code == 200
    assert sorted(db.rows("SELECT tenant_id FROM mailglass_events")) == [("acme",), ("umbrella",)]


def test_a_webhook_whose_tenant_cannot_be_found_is_not_recorded(db, caplog):
    """The default tenant would keep it for good; the provider sends it again."""
    brevo = make_post("brevo", [senders.load_payloads("brevo")[0].payload])
    for tenant in ("nowhere.tenant", lambda event: event.tags["tenant"], lambda event: None):
        with override_settings(MAILGLASS_TENANT=tenant):
            assert [post_over_wsgi(**request).status_code for request in (postmark(), brevo)] == [503, 429]
    assert db.value(EVENTS) == 0
    assert "MAILGLASS_TENANT: cannot import nowhere.tenant" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_webhook_is_attached_to_a_send_by_anymail_and_published(db):
    """The ids are the same however the send was recorded."""
    message = Message.send_accepted(POSTMARK, 1, [ANN])
    assert post_over_wsgi(**postmark({**OPEN, "MessageID": message.ids[ANN]})).status_code == 200
    assert [delivery["last_event_type"] for delivery in message.deliveries(db)] == ["opened"]
    wait_until(lambda: len(db.witness.messages()) == 2)
    messages = db.witness.messages()
    db.witness.messages = lambda: messages
