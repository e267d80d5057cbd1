"""The application, Django's view, and a view of one's own with `receive` and `refusal`, answer and store alike."""

import logging
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import partial

import pytest

import senders
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.certificates import CertificateStore
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.receiver import refusals
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.webhooks import receive, refusal
from marking import slow_unless
from receivers import SECRETS, Answer, by_application, by_django, by_receive, first, now, setting
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import Posted
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.usefixtures("app", "anymail_settings")

STORED = """
SELECT metadata->>'provider', type, occurred_at, metadata - 'recipient_known', reject_reason
  FROM mailglass_events WHERE tenant_id = :tenant ORDER BY 1, 2, 3, metadata::text
"""
INVALID, UNREADABLE, UNKNOWN = (
    "invalid signature",
    "the body cannot be read",
    "no secret is configured for this provider",
)
AGAIN = "try again later"
HIDE = "ALTER TABLE mailglass_events RENAME TO hidden"
SHOW = "ALTER TABLE hidden RENAME TO mailglass_events"


Way = Callable[[str, Posted], Answer]


@pytest.fixture
def ways(db) -> dict[str, Way]:
    """The ways in, by the tenant for which each records."""
    setting(
        db, ",".join(f"{provider}={secret}" for provider, secret in SECRETS.items()), webhook_url=senders.MANDRILL_URL
    )
    ways = {"application": by_application, "django": by_django, "receive": by_receive}
    return {tenant: partial(way, db, tenant=tenant) for tenant, way in ways.items()}


def ask_all(ways: Mapping[str, Way], provider: str, request: Posted) -> Answer:
    """Return the answer to a request, which is the same in each way."""
    answers = {name: way(provider, request) for name, way in ways.items()}
    assert len(set(answers.values())) == 1, (provider, answers)
    return answers["receive"]


def stored(db) -> list[tuple]:
    """Return what is stored, which is the same in each way."""
    rows = {tenant: db.rows(STORED, tenant=tenant) for tenant in ("application", "django", "receive")}
    assert rows["application"] == rows["django"] == rows["receive"]
    assert db.value("SELECT count(*) FROM mailglass_events") == 3 * len(rows["receive"])
    return rows["receive"]


def logged(caplog) -> list[str]:
    """Return our lines; Django would log each refusal with its path, and mail each 5xx to ADMINS."""
    assert [record.name for record in caplog.records if record.name.startswith("django")] == []
    return [record.getMessage() for record in caplog.records if record.name.startswith("mailglass_reconcile")]


def test_a_webhook_of_each_provider_is_recorded_once(db, ways):
    """A repeated one changes nothing."""
    for number, provider in enumerate(PROVIDERS, 1):
        request = first(provider)
        assert [ask_all(ways, provider, request) for _ in range(2)] == [(200, "ok")] * 2, provider
        assert len(stored(db)) >= number, provider


@pytest.mark.parametrize("provider", ["ses", pytest.param("scaleway", marks=pytest.mark.slow)])
def test_the_first_notification_of_a_process_waits_for_its_certificate_unless_another_waits(
    db, ways, monkeypatch, provider
):
    """The other one is a stranger's, which no process leaves waiting for long."""
    request, may = first(provider), threading.Event()

    def fetch(url):
        assert may.wait(PATIENCE)
        return senders.serve_certificate(url)

    def start_process() -> None:
        wait_until(lambda: not sns.certificates._threads)
        monkeypatch.setattr(sns, "certificates", CertificateStore(wait_seconds=PATIENCE))
        may.clear()

    monkeypatch.setattr(sns, "fetch", fetch)
    for name, way in ways.items():
        start_process()
        sns.certificates._is_waiting = True
        assert way(provider, request) == (503, AGAIN), name
        may.set()
        wait_until(lambda: not sns.certificates._threads)
        assert way(provider, request) == (200, "ok"), f"{name}: the repetition, and its certificate was fetched"
        start_process()
        threading.Timer(0.2, may.set).start()
        assert way(provider, request) == (200, "ok"), f"{name}: it did not wait"
    assert len(stored(db)) == 1
    wait_until(lambda: not sns.certificates._threads)


def test_a_certificate_that_cannot_be_fetched_is_asked_for_once_in_fifteen_seconds(db, ways, monkeypatch, caplog):
    """Whichever way asks; the line in the log names no address."""
    fetches = []

    def fetch(url):
        fetches.append(url)
        raise OSError("c4n4ry")

    monkeypatch.setattr(sns, "fetch", fetch)
    for name, way in ways.items():
        monkeypatch.setattr(sns, "certificates", CertificateStore())
        monkeypatch.setattr(refusals, "_throttle", LogThrottle())
        fetches.clear()
        caplog.clear()
        assert [way("ses", first("ses")) for _ in range(3)] == [(503, AGAIN)] * 3, name
        assert fetches == [senders.CERTIFICATE_URL], name
        assert logged(caplog) == ["a webhook of ses was refused: cannot reach Amazon SNS (OSError): try again"], name
    assert stored(db) == []


def test_a_wrong_signature_is_refused_and_event_grid_asked_to_repeat(db, ways, caplog):
    """The request is another provider's; each way logs it as one warning without its content."""
    for provider in PROVIDERS:
        other = first("postmark" if provider in ("resend", "sendgrid") else "resend")
        assert ask_all(ways, provider, other) == (503 if provider == "azure" else 401, INVALID), provider
    assert stored(db) == []
    lines = logged(caplog)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert len(lines) == len(PROVIDERS), "the second and third of a cause are not logged"
    assert "@" not in "".join(lines)


def test_a_signed_body_that_cannot_be_read_is_refused_for_good(db, ways, caplog):
    """The provider does not repeat it for hours; the log does not quote it."""
    for provider in PROVIDERS:
        body = b'{"auth": "AUTH", "events_by_user": "c4n4ry"}' if provider == "unisender_go" else b'"c4n4ry"'
        answer = ask_all(ways, provider, senders.sign_request(provider, body, at=now()))
        assert answer == (400, UNREADABLE), provider
    assert stored(db) == []
    assert "c4n4ry" not in caplog.text


def test_a_body_above_the_limit_of_its_provider_is_too_large(db, ways):
    """A password is verified before; a signature inside is not."""
    for provider in PROVIDERS:
        size = registry.get_provider(provider).max_bytes + 1
        large = first(provider)._replace(body=bytes(size))
        assert ask_all(ways, provider, large) == (413, "the body is too large"), provider
    assert stored(db) == []


def test_an_unknown_provider_and_one_without_a_secret_are_not_found(db, ways):
    """Whatever comes for them."""
    assert ask_all(ways, "pigeon", first("postmark")) == (404, UNKNOWN)
    setting(db, f"mailgun={senders.KEY}")
    for provider in PROVIDERS:
        if provider != "mailgun":
            assert ask_all(ways, provider, first(provider)) == (404, UNKNOWN), provider
    assert stored(db) == []


TWO = ["brevo", "postmark"]


@pytest.mark.parametrize("providers", slow_unless(TWO.__eq__, [TWO, [*PROVIDERS]]), ids=["two", "all"])
def test_what_a_provider_may_repeat_is_answered_so_that_it_does(db, ways, caplog, providers):
    """The database refuses: Brevo gives up after a 5xx, all others after a 4xx."""
    db.broken.add("I3")
    requests = {provider: first(provider) for provider in providers}
    db.run(HIDE)
    for provider, request in requests.items():
        assert ask_all(ways, provider, request) == (429 if provider == "brevo" else 503, AGAIN), provider
    db.run(SHOW)
    assert stored(db) == []
    assert {ask_all(ways, provider, request) for provider, request in requests.items()} == {(200, "ok")}
    assert len(stored(db)) >= len(providers)
    assert len(logged(caplog)) == len(providers)
    assert "Traceback" not in caplog.text


def test_no_line_of_a_refusal_has_an_address_or_a_secret(db, ways, caplog):
    """Each cause is one line for each provider, whichever way it came in, and however often."""
    wrong = f"Basic {b64encode(b'c4n4ry:ada@c4n4ry.example').decode()}"
    body = b'{"to": "ada@c4n4ry.example", "secret": "c4n4ry"}'
    for provider in (*PROVIDERS, "ada@c4n4ry.example"):
        for header in ("Authorization", "X-Unread"):
            request = Posted(body, {header: wrong, "Content-Type": "application/json"})
            for _ in range(2):
                assert ask_all(ways, provider, request).status in (401, 404, 503), provider
    assert stored(db) == []
    lines = logged(caplog)
    assert len(PROVIDERS) < len(lines) == len(set(lines))
    assert "c4n4ry" not in "".join(lines)


def test_a_webhook_without_events_is_accepted(db, ways, caplog):
    """Such as a ping, or inbound mail; each recorded webhook is a line of the log."""
    caplog.set_level(logging.INFO)
    ping = senders.sign_request("mailersend", b'{"type": "inbound.message"}', at=now())
    assert ask_all(ways, "mailersend", ping) == (200, "ok")
    assert stored(db) == []
    assert logged(caplog) == ["mailersend: 0 events"] * 2, "`receive` leaves it to its caller"


def test_a_setting_that_cannot_be_used_is_not_the_providers_fault(db, ways, monkeypatch):
    """An application would not start with it, so only the ways that read it for each request are asked."""
    del ways["application"]
    for secrets in (None, "@/nowhere", f"postmark={senders.AUTH},pidgeon=x"):
        setting(db, secrets)
        monkeypatch.setattr(refusals, "_throttle", LogThrottle())
        assert ask_all(ways, "postmark", first("postmark")) == (503, AGAIN)
        assert ask_all(ways, "brevo", first("brevo")) == (429, AGAIN)
    assert db.value("SELECT count(*) FROM mailglass_events") == 0
    db.broken.add("I9")  # the line that explains the setting has an `@FILE`


def test_a_tenant_of_the_applications_that_cannot_be_one_lets_receive_ask_for_a_repetition(db):
    """It is no fault of the provider's, which would never repeat after 400."""
    request = first("postmark")
    for tenant in (7, "", "a\0b"):
        with db.engine.begin() as connection, pytest.raises(ConfigurationError, match="tenant_id") as caught:
            receive(connection, "postmark", request.body, request.headers, secret=SECRETS["postmark"], tenant_id=tenant)
        assert refusal("postmark", caught.value).status == 503
