"""Certificates that have verified a webhook are known after a restart, whatever strangers do meanwhile."""

import logging
import threading
import time
import warnings

import pytest
import sqlalchemy as sa

import mailglass_reconcile
import senders
from mailglass_reconcile.providers import certificates, sns
from mailglass_reconcile.providers.certificates import CertificateCache
from mailglass_reconcile.receiver import admission, known_certificates
from mailglass_reconcile.store import certificates as stored
from mailglass_reconcile.store.certificates import CertificateAddress
from receivers import first, mount_receiver, post
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import CERTIFICATE_URL
from waiting import wait_until

pytestmark = pytest.mark.version_independent

ADDRESSES = "SELECT provider, url FROM mailglass_webhook_certificates"
OTHER_CERTIFICATE_URL = CERTIFICATE_URL.replace("0123", "3210")


def simulate_restart(monkeypatch, *, attacked: bool = False) -> CertificateCache:
    """Forget all certificates, like a restart; if *attacked*, requested certificates are not fetched."""
    certificate_cache = CertificateCache()
    if attacked:
        certificate_cache._failures.extend([time.monotonic()] * certificates.FAILURES)
        certificate_cache._next_try = time.monotonic() + 3
        monkeypatch.setattr(certificates, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(sns, "certificates", certificate_cache)
    return certificate_cache


def add(db, *addresses: CertificateAddress) -> None:
    """Store certificate addresses in order."""
    database = known_certificates.Database(db.engine, db.settings)
    for address in addresses:
        with database.writing() as tx:
            stored.add_address(tx, address)


def test_a_restart_under_attack_does_not_refuse_honest_webhooks(db, monkeypatch):
    """Strangers that name missing certificates once blocked SES for as long as they went on."""
    (answer,) = post(mount_receiver(), "/webhooks/ses", first("ses"))
    assert answer.status_code == 200
    assert db.rows(ADDRESSES) == [("ses", CERTIFICATE_URL)]
    cache = simulate_restart(monkeypatch, attacked=True)
    receiver = mount_receiver()
    receiver.routes[0].app.start()
    wait_until(lambda: CERTIFICATE_URL in cache)
    assert [answer.status_code for answer in post(receiver, "/webhooks/ses", first("ses"))] == [200]


def test_a_certificate_that_was_never_stored_waits_behind_others(db, monkeypatch, caplog):
    """The status is 503, so that SNS retries, and the line is a warning."""
    simulate_restart(monkeypatch, attacked=True)
    (answer,) = post(mount_receiver(), "/webhooks/ses", first("ses"))
    assert answer.status_code == 503
    assert [(record.levelname, "try again" in record.getMessage()) for record in caplog.records] == [("WARNING", True)]


def test_nothing_is_stored_before_a_signature_was_right(db):
    """The number of requests that name it does not matter."""
    forged = first("ses")._replace(body=first("ses").body.replace(b'"Signature": "', b'"Signature": "AAAA'))
    (answer,) = post(mount_receiver(), "/webhooks/ses", forged)
    assert (answer.status_code, db.rows(ADDRESSES)) == (401, [])


def test_a_stored_address_is_fetched_only_if_it_is_the_providers(db, monkeypatch):
    """A planted row causes no request to another host; a missing certificate is retried."""
    requests = []

    def fetch(url):
        requests.append(url)
        return senders.serve_certificate(url)

    monkeypatch.setattr(sns, "fetch", fetch)
    monkeypatch.setattr(known_certificates, "FIRST_PAUSE_SECONDS", 0.01)
    add(
        db,
        CertificateAddress(
            "ses", "https://evil.example/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
        ),
        CertificateAddress("scaleway", CERTIFICATE_URL),
        CertificateAddress("postmark", CERTIFICATE_URL),
        CertificateAddress("pigeon", OTHER_CERTIFICATE_URL.replace("3210", "aaaa")),
        CertificateAddress("ses", OTHER_CERTIFICATE_URL),
    )
    cache = simulate_restart(monkeypatch)
    mount_receiver().routes[0].app.start()
    wait_until(lambda: len(requests) >= 3)
    assert set(requests) == {OTHER_CERTIFICATE_URL}
    assert CERTIFICATE_URL not in cache


def test_the_newest_32_addresses_are_kept(db):
    """Those of past years are not needed."""
    addresses = [CertificateAddress("ses", CERTIFICATE_URL.replace("0123", f"{number:04}")) for number in range(40)]
    add(db, *addresses, addresses[-1])
    with known_certificates.Database(db.engine, db.settings).reading() as tx:
        assert stored.load_addresses(tx) == addresses[:7:-1]


def test_a_receiver_starts_and_answers_without_a_database(db, monkeypatch, caplog):
    """It retries reading the stored addresses, and logs that once a minute."""
    monkeypatch.setattr(known_certificates, "FIRST_PAUSE_SECONDS", 0.01)
    receiver = mount_receiver(engine=sa.create_engine("postgresql+psycopg://u:c4n4ry@127.0.0.1:1/x")).routes[0].app
    with caplog.at_level(logging.WARNING):
        receiver.start()
        wait_until(lambda: caplog.records)
    assert "the stored addresses of certificates cannot be read yet" in caplog.records[0].getMessage()
    assert "c4n4ry" not in caplog.text


def test_a_receiver_whose_engine_has_no_connection_left_verifies_with_new_certificates(db, monkeypatch, caplog):
    """An application's pool may be exhausted while it starts. The thread once ended, and SES got 503 from then on."""
    monkeypatch.setattr(known_certificates, "FIRST_PAUSE_SECONDS", 0.01)
    engine = sa.create_engine(db.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    receiver = mount_receiver(engine=engine)
    with engine.connect():
        assert receiver.routes[0].app.start().result(20) is None
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name == "mailglass-known-certificates"]
    )
    assert [answer.status_code for answer in post(receiver, "/webhooks/ses", first("ses"))] == [200]
    assert "the connection pool" in caplog.records[0].getMessage()
    wait_until(mailglass_reconcile.flush)
    engine.dispose()


def fail_to_connect() -> None:
    """Fail as an application's `creator` may, which fetches a password."""
    raise LookupError("c4n4ry")


@pytest.mark.parametrize("failing", ["database", "fetch"])
def test_the_first_attempt_to_load_certificates_ends_whatever_fails(db, monkeypatch, caplog, failing):
    """The engine and `sns.fetch` may be an application's own, and raise anything."""
    monkeypatch.setattr(known_certificates, "FIRST_PAUSE_SECONDS", 0.01)
    add(db, CertificateAddress("ses", OTHER_CERTIFICATE_URL), CertificateAddress("ses", CERTIFICATE_URL))
    cache = simulate_restart(monkeypatch)

    def fetch(url):
        return senders.serve_certificate(url) if url == CERTIFICATE_URL else fail_to_connect()

    monkeypatch.setattr(sns, "fetch", fetch)
    engine = sa.create_engine("postgresql+psycopg://", creator=fail_to_connect) if failing == "database" else None
    assert mount_receiver(engine=engine).routes[0].app.start().result(20) is None
    assert (CERTIFICATE_URL in cache) == (failing == "fetch"), "another certificate's failure kept it away"
    assert "c4n4ry" not in caplog.text
    assert ("LookupError in" in caplog.text) == (failing == "database")


@pytest.mark.parametrize("sent", ["\\/", "\\u002f", "/"])
def test_a_certificate_is_found_in_a_body_however_its_address_is_escaped(sent):
    """It is parsed only later; of two addresses, JSON takes the last."""
    body = first("ses").body.replace(CERTIFICATE_URL.encode(), CERTIFICATE_URL.replace("/", sent).encode())
    request = certificates_request(b'{"SigningCertURL": "' + OTHER_CERTIFICATE_URL.encode() + b'", ' + body[1:])
    assert (
        sns.find_certificate_source(request, senders.ARN, known_certificates.registry.get_provider("ses").service).url
        == CERTIFICATE_URL
    )


def certificates_request(body: bytes):
    """Return a request with a body."""
    return known_certificates.registry.make_request(body)


def test_a_notification_that_may_not_wait_is_refused_without_a_warning_of_python(db, monkeypatch):
    """A coroutine was made for it that nobody awaited, as Python then said on stderr."""
    monkeypatch.setattr(admission, "MAX_AWAITING_CERTIFICATE", 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (answer,) = post(mount_receiver(), "/webhooks/ses", first("ses"))
    assert answer.status_code == 503
    assert [str(warning.message) for warning in caught if "never awaited" in str(warning.message)] == []
