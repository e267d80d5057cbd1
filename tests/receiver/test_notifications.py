"""Notifications of SNS, whose first waits for its certificate, whatever strangers do meanwhile."""

import asyncio
import re
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
from mailglass_reconcile.providers.certificates import UnavailableError
from mailglass_reconcile.webhooks import receive
from receivers import ask, first, mount_receiver, post
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import CERTIFICATE_URL
from waiting import wait_until

pytestmark = pytest.mark.version_independent

OTHER_CERTIFICATE_URL = CERTIFICATE_URL.replace("0123", "3210")


def test_a_notification_takes_no_thread_for_a_certificate_in_memory(db):
    receiver = mount_receiver()
    assert [post(receiver, "/webhooks/ses", first("ses"))[0].status_code for _ in range(2)] == [200, 200]
    receiver.routes[0].app._waiting_threads.shutdown()  # it takes no more jobs
    assert post(receiver, "/webhooks/ses", first("ses"))[0].status_code == 200


@pytest.mark.slow
def test_four_strangers_a_second_delay_the_first_notification_until_a_repetition_at_most(db, monkeypatch):
    """They name another certificate each time, which Amazon's server refuses after 0.3 seconds.

    SNS repeats after 20 seconds; here it is one.
    """

    def fetch(url):
        time.sleep(0.3)
        if url != CERTIFICATE_URL:
            raise OSError
        return senders.serve_certificate(url)

    monkeypatch.setattr(sns, "fetch", fetch)
    honest, numbers, refused = first("ses"), count(), Counter()

    async def talk(client):
        async def attack():
            while True:
                name = f"-{next(numbers):032x}".encode()
                body = re.sub(rb"-[0-9a-f]{32}(?=\.pem)", name, honest.body)
                refused[(await client.post("/webhooks/ses", content=body, headers=honest.headers)).status_code] += 1
                await asyncio.sleep(1)

        strangers = []
        for _ in range(4):
            strangers.append(asyncio.create_task(attack()))
            await asyncio.sleep(0.25)
        await asyncio.to_thread(wait_until, lambda: refused[503] > 4)
        statuses = []
        for repetition in range(3):
            await asyncio.sleep(1 if repetition else 0)  # SNS's pause
            response = await client.post("/webhooks/ses", content=honest.body, headers=honest.headers)
            statuses.append(response.status_code)
        for stranger in strangers:
            stranger.cancel()
        return statuses

    statuses = ask(mount_receiver(), talk)
    assert (statuses[1:], set(refused)) == ([200, 200], {503}), statuses


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


def test_receive_does_not_block_an_event_loop(db):
    """Under an async connection it asks for a repetition, for which the certificate is there."""
    request = first("ses")

    async def run():
        engine = create_async_engine(db.engine.url)

        async def receive_once():
            async with engine.begin() as connection:
                return await connection.run_sync(receive, "ses", request.body, request.headers, secret=senders.ARN)

        with pytest.raises(UnavailableError, match="try again"):
            await receive_once()
        await asyncio.to_thread(wait_until, lambda: CERTIFICATE_URL in sns.certificates)
        recorded = await receive_once()
        await engine.dispose()
        return recorded

    assert len(asyncio.run(run())) == 1
    wait_until(mailglass_reconcile.flush)


@pytest.mark.parametrize("sent", ["\\/", "\\u002f", "/"])
def test_a_certificate_is_found_in_a_body_however_its_address_is_escaped(sent):
    """It is parsed only later; of two addresses, JSON takes the last."""
    body = first("ses").body.replace(CERTIFICATE_URL.encode(), CERTIFICATE_URL.replace("/", sent).encode())
    request = registry.make_request(b'{"SigningCertURL": "' + OTHER_CERTIFICATE_URL.encode() + b'", ' + body[1:])
    assert (
        sns.find_certificate_source(request, senders.ARN, registry.get_provider("ses").service).url == CERTIFICATE_URL
    )
