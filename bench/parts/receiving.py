"""Webhooks over HTTP: one process `receive` with signed batches of SendGrid, against `record_webhook` in a loop."""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.figures import Part
from bench.filling import fill
from bench.testbed import Testbed, vacuum
from mailglass_reconcile import Settings, broadcast, configure, record_webhook
from mailglass_reconcile.webhooks import parse, registry

BATCHES, SIZE, WARM = 200, 100, 10
CLIENTS = 4
NAME = "one process `receive`, signed SendGrid batches of 100, against `record_webhook` in calls of 100"

DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
       provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'default', 'Mail', 'transactional', 'u' || n || '@example.com', 'example.com', 'sendgrid',
       'message-' || n, 'dispatched', '2026-03-01 11:00', '2026-03-01 11:00', now(), now()
  FROM generate_series(0, %s) AS n
"""


def measure(testbed: Testbed) -> Part:
    """Record the same batches by calls and over HTTP, in turns; their deliveries exist."""
    part = Part()
    warm = testbed.scaled(WARM)
    batches = warm + testbed.scaled(BATCHES)
    url = testbed.copy("migrated", "received")
    fill(url, deliveries=testbed.scaled(100_000))
    with psycopg.connect(url) as connection:
        connection.execute(DELIVERIES, [batches * SIZE])
    vacuum(url)
    key = ec.generate_private_key(ec.SECP256R1())
    bodies = [_batch(number) for number in range(batches)]
    received, called = [], []
    for _ in range(testbed.rounds):
        received.append(_over_http(testbed, testbed.copy("received"), key, bodies, warm))
        called.append(_by_calls(testbed, testbed.copy("received"), bodies, warm))
    rates = statistics.median(received), statistics.median(called)
    part.compare(NAME, *rates, "events/s", 0.6, least=True)
    testbed.drop("received", "run")
    return part


def _batch(number: int) -> bytes:
    record, at = registry.get_provider("sendgrid"), dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    relayed, extra_fields = "filter0001.16648.5515E0B88.0", {"response": "250 OK", "category": ["welcome"], "tls": 1}
    events = [
        record.table.make_sample(
            "delivered", f"message-{n}.{relayed}", f"u{n}@example.com", at + dt.timedelta(seconds=n % 3_600)
        )
        | extra_fields
        for n in range(number * SIZE, (number + 1) * SIZE)
    ]
    return record.bodies(events)[0]


def _by_calls(testbed: Testbed, url: str, bodies: Sequence[bytes], warm: int) -> float:
    """Return events a second of `record_webhook` and `broadcast`, in one thread, on a pool."""
    configure(settings=Settings(database_url=url, redis_url=testbed.redis_url))
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    calls = [parse("sendgrid", body) for body in bodies]
    for number, events in enumerate(calls):
        if number == warm:
            began = time.perf_counter()
        with engine.begin() as connection:
            recorded = record_webhook(connection, provider="sendgrid", events=events)
        broadcast(recorded)
    seconds = time.perf_counter() - began
    engine.dispose()
    return (len(calls) - warm) * SIZE / seconds


def _over_http(
    testbed: Testbed, url: str, key: ec.EllipticCurvePrivateKey, bodies: Sequence[bytes], warm: int
) -> float:
    """Return events a second over four connections, from the first request until the last answer."""
    requests = [(body, sign(key, body)) for body in bodies]
    with _receiving(testbed, url, key) as port:
        _post(port, requests[:warm])
        shares = [requests[warm + client :: CLIENTS] for client in range(CLIENTS)]
        threads = [threading.Thread(target=_post, args=(port, share)) for share in shares]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    with psycopg.connect(url) as connection:
        (count,) = connection.execute("SELECT count(*) FROM mailglass_events WHERE type = 'delivered'").fetchone() or ()
    if count != len(bodies) * SIZE:
        raise SystemExit(f"{count} of {len(bodies) * SIZE} events were recorded")
    return (len(bodies) - warm) * SIZE / seconds


def sign(key: ec.EllipticCurvePrivateKey, body: bytes) -> dict[str, str]:
    """Return the headers with which SendGrid signs a body."""
    signature = key.sign(b"1" + body, ec.ECDSA(hashes.SHA256()))
    names = "X-Twilio-Email-Event-Webhook-Signature", "X-Twilio-Email-Event-Webhook-Timestamp"
    return dict(zip(names, (base64.b64encode(signature).decode(), "1"), strict=True))


def _post(port: int, requests: Sequence[tuple[bytes, dict[str, str]]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for body, headers in requests:
        connection.request("POST", "/sendgrid", body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"receive answered {answer.status}")


@contextmanager
def _receiving(testbed: Testbed, url: str, key: ec.EllipticCurvePrivateKey) -> Iterator[int]:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    public = base64.b64encode(key.public_key().public_bytes(*form)).decode()
    environment = {**testbed.environment(url), "MAILGLASS_WEBHOOK_SECRETS": f"sendgrid={public}"}
    command = [sys.executable, "-m", "mailglass_reconcile", "receive", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            startup_line = process.stderr.readline() if process.stderr else ""
            match = re.search(r":(\d+)/;", startup_line)
            if match is None:
                raise SystemExit(f"receive did not start: {startup_line}")
            yield int(match[1])
        finally:
            process.terminate()
