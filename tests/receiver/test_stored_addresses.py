"""Certificates that have verified a webhook are known after a restart, whatever strangers do meanwhile."""

import asyncio
import logging
import re
import threading
import time
from collections import Counter
from itertools import count

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import mailglass_reconcile
import meter
import senders
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.providers.certificates import CertificateStore, UnavailableError
from mailglass_reconcile.receiver import stored_addresses
from mailglass_reconcile.receiver.stored_addresses import StoredAddresses
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store import certificates as stored
from mailglass_reconcile.store.certificates import CertificateAddress
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.webhooks import receive
from receivers import ask, first, mount_receiver, post
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import CERTIFICATE_URL
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.version_independent

ADDRESSES = "SELECT provider, url FROM mailglass_webhook_certificates"
OTHER_CERTIFICATE_URL = CERTIFICATE_URL.replace("0123", "3210")


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Let a thread of the store end before the database is dropped."""
    monkeypatch.setattr(stored_addresses, "_throttle", LogThrottle())
    yield
    wait_until(lambda: not sns.certificates._threads)


def simulate_restart(monkeypatch, *, attacked: bool = False) -> CertificateStore:
    """Forget all certificates, like a restart; if *attacked*, strangers have used up the time to wait for others."""
    store = CertificateStore()
    if attacked:
        store._budget = 0.0
    monkeypatch.setattr(sns, "certificates", store)
    return store


def add(db, *addresses: CertificateAddress) -> None:
    """Store certificate addresses in order."""
    for address in addresses:
        with Database(db.engine, db.settings).writing() as tx:
            stored.add_address(tx, address)


def test_a_restart_under_attack_does_not_refuse_honest_webhooks(db, monkeypatch):
    """Strangers that name missing certificates once blocked SES for as long as they went on."""
    (answer,) = post(mount_receiver(), "/webhooks/ses", first("ses"))
    assert answer.status_code == 200
    wait_until(lambda: db.rows(ADDRESSES) == [("ses", CERTIFICATE_URL)])
    simulate_restart(monkeypatch, attacked=True)
    assert [answer.status_code for answer in post(mount_receiver(), "/webhooks/ses", first("ses"))] == [200]


def test_a_receiver_fetches_the_stored_certificates_when_it_starts(db, monkeypatch):
    """So that its first webhook need not wait."""
    add(db, CertificateAddress("ses", CERTIFICATE_URL))
    store = simulate_restart(monkeypatch)
    mount_receiver().routes[0].app.start()
    wait_until(lambda: CERTIFICATE_URL in store)


def test_a_certificate_that_is_not_stored_is_fetched_for_the_repetition(db, monkeypatch, caplog):
    """While strangers have used up the time to wait, the status is 503, so that SNS repeats; the line is a warning."""
    store, may = simulate_restart(monkeypatch, attacked=True), threading.Event()
    monkeypatch.setattr(sns, "fetch", lambda url: may.wait(PATIENCE) and senders.serve_certificate(url))
    (answer,) = post(mount_receiver(), "/webhooks/ses", first("ses"))
    assert answer.status_code == 503
    may.set()
    assert [(record.levelname, "try again" in record.getMessage()) for record in caplog.records] == [("WARNING", True)]
    wait_until(lambda: CERTIFICATE_URL in store)
    assert [answer.status_code for answer in post(mount_receiver(), "/webhooks/ses", first("ses"))] == [200]


@pytest.mark.slow
def test_a_stranger_delays_the_first_notification_ever_until_its_second_repetition(db, monkeypatch):
    """40 clients name another certificate each time, and each fetch takes as long as it may.

    SNS repeats after 20 seconds; here it is three, which is as long as a fetch takes, and a second.
    """
    simulate_restart(monkeypatch)

    def fetch(url):
        if url != CERTIFICATE_URL:
            time.sleep(sns.TIMEOUT_SECONDS)
            raise TimeoutError
        return senders.serve_certificate(url)

    monkeypatch.setattr(sns, "fetch", fetch)
    honest, numbers, refused = first("ses"), count(), Counter()

    async def talk(client):
        pause = 0.0

        async def attack():
            while True:
                name = f"-{next(numbers):032x}".encode()
                body = re.sub(rb"-[0-9a-f]{32}(?=\.pem)", name, honest.body)
                refused[(await client.post("/webhooks/ses", content=body, headers=honest.headers)).status_code] += 1
                await asyncio.sleep(pause)

        strangers = [asyncio.create_task(attack()) for _ in range(40)]
        await asyncio.to_thread(wait_until, lambda: refused[503] > 1_000)
        pause, statuses = 0.1, []  # 400 addresses a second from now on, or this process would have no time for another
        for repetition in range(4):
            await asyncio.sleep(3 if repetition else 0)  # SNS's pause
            response = await client.post("/webhooks/ses", content=honest.body, headers=honest.headers)
            statuses.append(response.status_code)
        for stranger in strangers:
            stranger.cancel()
        sns.certificates._named.clear()
        return statuses

    statuses = ask(mount_receiver(), talk)
    assert (statuses[2:], set(refused)) == ([200, 200], {503}), statuses


@pytest.mark.parametrize("kind", [sa.Connection, Session])
def test_receive_waits_before_its_first_statement(db, monkeypatch, kind):
    """A transaction would hold its snapshot and its locks meanwhile."""
    counts, request = [], first("ses")
    with meter.statements(db.engine) as statements:

        def fetch(url):
            counts.append(len(statements))
            return senders.serve_certificate(url)

        monkeypatch.setattr(sns, "fetch", fetch)
        with db.engine.begin() if kind is sa.Connection else Session(db.engine) as connection:
            assert receive(connection, "ses", request.body, request.headers, secret=senders.ARN)
            connection.commit()
    assert counts == [0]
    assert statements
    wait_until(mailglass_reconcile.flush)


def test_receive_does_not_block_an_event_loop(db, monkeypatch):
    """Under an async connection it asks for a repetition, for which the certificate is there and then stored."""
    store, request = simulate_restart(monkeypatch), first("ses")

    async def run():
        engine = create_async_engine(db.engine.url)

        async def receive_once():
            async with engine.begin() as connection:
                return await connection.run_sync(receive, "ses", request.body, request.headers, secret=senders.ARN)

        with pytest.raises(UnavailableError, match="try again"):
            await receive_once()
        await asyncio.to_thread(wait_until, lambda: CERTIFICATE_URL in store)
        recorded = await receive_once()
        await engine.dispose()
        return recorded

    assert len(asyncio.run(run())) == 1
    wait_until(lambda: db.rows(ADDRESSES) == [("ses", CERTIFICATE_URL)])
    wait_until(mailglass_reconcile.flush)


def test_nothing_is_stored_before_a_signature_was_right(db):
    """The number of requests that name it does not matter."""
    forged = first("ses")._replace(body=first("ses").body.replace(b'"Signature": "', b'"Signature": "AAAA'))
    (answer,) = post(mount_receiver(), "/webhooks/ses", forged)
    assert (answer.status_code, db.rows(ADDRESSES)) == (401, [])


def test_a_stored_address_is_fetched_only_if_it_is_the_providers(db, monkeypatch):
    """A planted row causes no request to another host."""
    requests = []

    def fetch(url):
        requests.append(url)
        return senders.serve_certificate(url)

    monkeypatch.setattr(sns, "fetch", fetch)
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
    store = simulate_restart(monkeypatch)
    mount_receiver().routes[0].app.start()
    wait_until(lambda: not store._threads)
    assert requests == [OTHER_CERTIFICATE_URL]
    assert CERTIFICATE_URL not in store


def test_the_newest_32_addresses_are_kept(db):
    """Those of past years are not needed."""
    addresses = [CertificateAddress("ses", CERTIFICATE_URL.replace("0123", f"{number:04}")) for number in range(40)]
    add(db, *addresses, addresses[-1])
    with Database(db.engine, db.settings).reading() as tx:
        assert stored.load_addresses(tx) == addresses[:7:-1]


def test_a_receiver_starts_without_a_database(db, caplog):
    """The line is logged once a minute, without the password."""
    engine = sa.create_engine("postgresql+psycopg://u:c4n4ry@127.0.0.1:1/x")
    receiver = mount_receiver(engine=engine).routes[0].app
    with caplog.at_level(logging.WARNING):
        receiver.start()
        wait_until(lambda: caplog.records)
        assert StoredAddresses(engine).load() == []
    (record,) = caplog.records
    assert "the stored addresses of certificates cannot be read" in record.getMessage()
    assert "c4n4ry" not in caplog.text


def test_addresses_are_read_and_stored_on_a_connection_of_its_own(db):
    """An application's pool may be exhausted; the thread once ended with its error, and SES got 503 from then on."""
    engine = sa.create_engine(db.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    addresses = StoredAddresses(engine, "ses")
    with engine.connect():
        assert addresses.add(CERTIFICATE_URL)
        assert [source.url for source in addresses.load()] == [CERTIFICATE_URL]
    engine.dispose()


def fail_to_connect() -> None:
    """Fail as an application's `creator` may, which fetches a password."""
    raise LookupError("c4n4ry")


@pytest.mark.parametrize("failing", ["database", "fetch"])
def test_what_fails_for_one_certificate_keeps_no_other_away(db, monkeypatch, caplog, failing):
    """The engine and `sns.fetch` may be an application's own, and raise anything."""
    add(db, CertificateAddress("ses", OTHER_CERTIFICATE_URL), CertificateAddress("ses", CERTIFICATE_URL))
    store = simulate_restart(monkeypatch)

    def fetch(url):
        return senders.serve_certificate(url) if url == CERTIFICATE_URL else fail_to_connect()

    monkeypatch.setattr(sns, "fetch", fetch)
    engine = sa.create_engine("postgresql+psycopg://", creator=fail_to_connect) if failing == "database" else None
    mount_receiver(engine=engine).routes[0].app.start()
    wait_until(lambda: CERTIFICATE_URL in store if failing == "fetch" else "LookupError in" in caplog.text)
    assert "c4n4ry" not in caplog.text


@pytest.mark.parametrize("sent", ["\\/", "\\u002f", "/"])
def test_a_certificate_is_found_in_a_body_however_its_address_is_escaped(sent):
    """It is parsed only later; of two addresses, JSON takes the last."""
    body = first("ses").body.replace(CERTIFICATE_URL.encode(), CERTIFICATE_URL.replace("/", sent).encode())
    request = registry.make_request(b'{"SigningCertURL": "' + OTHER_CERTIFICATE_URL.encode() + b'", ' + body[1:])
    assert (
        sns.find_certificate_source(request, senders.ARN, registry.get_provider("ses").service).url == CERTIFICATE_URL
    )
