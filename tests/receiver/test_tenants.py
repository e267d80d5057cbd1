"""Tenants with their own accounts: a tenant's secret is valid for that tenant only."""

import threading

import pytest

from mailglass_reconcile import ConfigurationError
from mailglass_reconcile.rules import log_throttle
from mailglass_reconcile.webhooks import webhook_app
from receivers import SECRETS, first, mount_receiver, post
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import AUTH

pytestmark = pytest.mark.version_independent

RECORDED = "SELECT DISTINCT tenant_id FROM mailglass_events"
PATH = "/webhooks/acme/postmark"


def third(path: str) -> str:
    """Return the tenant in a path."""
    return path.split("/")[2]


def statuses(receiver, *paths: str, provider: str = "postmark") -> list[int]:
    """Post the same webhook to some paths, and return the statuses."""
    return [post(receiver, path, first(provider))[0].status_code for path in paths]


def secret_of(provider: str, tenant: str) -> str | None:
    """Return the secret of tenant acme."""
    return {("postmark", "acme"): AUTH, ("mailgun", "acme"): SECRETS["mailgun"]}.get((provider, tenant))


OF_ACME = {
    "acme": {"Postmark": ["old:one", AUTH], "mailgun": SECRETS["mailgun"]},
    "emca": {"postmark": ["emca:old", "emca:new"]},
}


@pytest.mark.parametrize("secrets", [OF_ACME, secret_of], ids=["a mapping", "a function"])
def test_a_secret_signs_for_its_own_tenant_only(db, secrets, caplog):
    """Another tenant's path is 401, or 404 if it has no secret for the provider or does not exist."""
    receiver = mount_receiver(secrets=secrets, tenant=third)
    paths = [PATH, "/webhooks/emca/postmark", "/webhooks/nobody/postmark", "/webhooks/acme/sendgrid"]
    assert statuses(receiver, *paths) == [200, 401 if secrets is OF_ACME else 404, 404, 404]
    assert statuses(receiver, "/webhooks/acme/mailgun", "/webhooks/emca/mailgun", provider="mailgun") == [200, 404]
    assert [tenant for (tenant,) in db.rows(RECORDED)] == ["acme"]
    assert "Traceback" not in caplog.text


def test_without_a_tenant_it_is_that_of_the_setting(db):
    """Recording has the same default."""
    assert statuses(mount_receiver(secrets={"default": {"postmark": AUTH}}), "/webhooks/postmark") == [200]
    assert statuses(mount_receiver(secrets={"acme": {"postmark": AUTH}}), "/webhooks/postmark") == [404]


def test_the_function_is_called_in_a_thread_with_the_canonical_name(db):
    """It may query a database, so it must not block the event loop."""
    calls = []

    def secrets(provider, tenant):
        calls.append((provider, tenant, threading.current_thread().name))
        return [AUTH]

    assert statuses(mount_receiver(secrets=secrets, tenant="acme"), "/webhooks/Postmark") == [200]
    ((provider, tenant, thread),) = calls
    assert (provider, tenant) == ("postmark", "acme")
    assert thread.startswith("mailglass-tenants")


def raises(provider, tenant):
    """Fail like a database."""
    raise LookupError("c4n4ry")


@pytest.mark.parametrize(
    ("secrets", "status"),
    [
        (lambda provider, tenant: None, 404),
        (lambda provider, tenant: [], 404),
        (raises, 503),
        (lambda provider, tenant: "", 503),
        (lambda provider, tenant: ":", 503),
        (lambda provider, tenant: "c4n4ry", 503),
        (lambda provider, tenant: [AUTH, None], 503),
        (lambda provider, tenant: 7, 503),
    ],
)
def test_an_invalid_secret_lets_the_provider_retry_and_a_missing_one_does_not(db, secrets, status, caplog):
    """One line in the log does not quote it; Brevo gets 429."""
    receiver = mount_receiver(secrets=secrets, tenant=third)
    assert statuses(receiver, PATH) == [status]
    (record,) = caplog.records
    assert record.levelname == ("WARNING" if status == 404 else "ERROR")
    assert "postmark" in record.getMessage()
    assert statuses(receiver, "/webhooks/acme/brevo", provider="brevo") == [404 if status == 404 else 429]
    assert "c4n4ry" not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("secrets", [SECRETS, OF_ACME], ids=["of all tenants", "of each tenant"])
def test_a_path_without_a_tenant_is_answered_with_404_and_logged_once_a_minute(db, secrets, caplog, monkeypatch):
    """The function returns None: there is no such tenant."""
    now = 100.0
    monkeypatch.setattr(log_throttle.time, "monotonic", lambda: now)
    receiver = mount_receiver(secrets=secrets, tenant=lambda path: third(path) if "acme" in path else None)
    for at, lines in ((100.0, 1), (159.0, 1), (160.0, 2)):
        now = at
        assert statuses(receiver, "/webhooks/x/postmark", "/webhooks/y/postmark") == [404, 404]
        assert len(caplog.records) == lines
    assert "no such tenant" in caplog.text
    assert statuses(receiver, PATH) == [200]
    assert [tenant for (tenant,) in db.rows(RECORDED)] == ["acme"]


def test_secrets_that_cannot_be_used_are_refused_at_the_start_for_each_tenant(db):
    """Secrets of all tenants are checked in the same way."""
    with pytest.raises(ConfigurationError, match="postmark: the user name or the password is empty"):
        webhook_app(secrets={"acme": {"postmark": ":"}})
    with pytest.raises(ConfigurationError, match="not of both"):
        webhook_app(secrets={"acme": {"postmark": AUTH}, "postmark": AUTH})
    with pytest.raises(ConfigurationError, match="without a provider's secret"):
        webhook_app(secrets={"acme": {}})
