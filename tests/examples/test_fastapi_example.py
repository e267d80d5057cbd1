"""`examples/fastapi`, started and used as its README says, with Postmark's payloads of every kind."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

import readme
from conftest import wait_until
from examples.postmark_payloads import everything, payload
from mailglass_reconcile.testing.servers import free_port

Ask = Callable[..., list[httpx.Response]]

ADA, BOB = "ada@example.com", "bob@example.com"
STATE = """
SELECT lower(recipient), last_event_type, last_event_at::text, terminal, delivered_at::text, bounced_at::text,
       complained_at::text
  FROM mailglass_deliveries WHERE provider_message_id = :id ORDER BY recipient
"""
BY_TYPE = "SELECT type, count(*) FROM mailglass_events WHERE metadata ->> 'provider_message_id' = :id GROUP BY type"
LOGIN = tuple(readme.exports("fastapi")[name] for name in ("POSTMARK_USER", "POSTMARK_PASSWORD"))


@contextmanager
def running(db, redis_url: str, log: Path) -> Iterator[str]:
    """Run the application by the README's own command, on a free port, and yield its address."""
    env = {**readme.environment(db, redis_url), **readme.exports("fastapi")}
    readme.run("fastapi", readme.command("fastapi", "migrate").text, env)
    port = free_port()
    start = re.sub(r"--port \d+", f"--port {port}", readme.command("fastapi", "uvicorn shop").text)
    with log.open("w") as output:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {start}"], cwd=readme.EXAMPLES / "fastapi", env=env, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: "startup complete" in log.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def post(base: str, report: object) -> bool:
    """Post a webhook, and return whether it waits for its send."""
    return httpx.post(f"{base}/webhooks/postmark", json=report, auth=LOGIN).raise_for_status().json()["orphan"]


@pytest.mark.guard
@pytest.mark.slow
def test_whichever_comes_first_the_deliveries_are_the_same(db, redis_url, tmp_path, mailglass_webhook_first):
    """Every kind after the send; the same while the send has not committed; and each of them once more."""
    log = tmp_path / "log"
    with running(db, redis_url, log) as base:
        answer = readme.curl(readme.command("fastapi", "curl", "/messages").text, base).json()
        later = answer["message_id"]
        told = readme.command("fastapi", "curl", "/webhooks").text
        assert readme.curl(told, base, later).json() == {"orphan": False}
        assert [post(base, report) for report in everything(later, ADA, BOB)] == 11 * [False]

        def report_early() -> list[bool]:
            known = re.findall(r"Postmark took (\S+)", log.read_text())[-1]
            return [
                readme.curl(told, base, known).json()["orphan"],
                *(post(base, one) for one in everything(known, ADA, BOB)),
            ]

        def send() -> dict:
            return httpx.post(f"{base}/messages", json=[ADA, BOB], timeout=30).json()

        sent, waiting = mailglass_webhook_first(send, report_early)
        assert (sent["linked"], waiting) == (12, 12 * [True])
        early = sent["message_id"]
        assert [post(base, report) for id_ in (later, early) for report in everything(id_, ADA, BOB)] == 22 * [False]
        assert "Traceback" not in log.read_text()

    assert db.rows(STATE, id=early) == db.rows(STATE, id=later)
    assert [tuple(row)[:4] for row in db.rows(STATE, id=early)] == [
        (ADA, "autoresponded", "2026-05-01 10:00:05.123456", True),
        (BOB, "complained", "2026-05-01 10:00:10.123456", True),
    ]
    expected = {"autoresponded": 1, "bounced": 1, "clicked": 1, "complained": 1, "deferred": 2, "delivered": 3}
    expected |= {"opened": 2, "unsubscribed": 1, "dispatched": 2}
    assert dict(map(tuple, db.rows(BY_TYPE, id=early))) == dict(map(tuple, db.rows(BY_TYPE, id=later))) == expected
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


@pytest.mark.slow
def test_a_browser_sees_what_happens_to_a_delivery(db, redis_url, tmp_path):
    """As server-sent events, on one connection to Redis that is closed when the browser leaves."""
    with running(db, redis_url, tmp_path / "log") as base, redis.Redis.from_url(redis_url) as client:
        sent = httpx.post(f"{base}/messages", json=[ADA], timeout=30).json()["message_id"]
        delivery = db.value("SELECT id::text FROM mailglass_deliveries")
        with httpx.stream("GET", f"{base}/deliveries/{delivery}/updates", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = (line for line in answer.iter_lines() if line)
            assert [next(lines), next(lines)] == ["event: refresh", "data: {}"]
            post(base, payload("Delivery", sent, ADA))
            update = json.loads(next(lines).removeprefix("data: "))
            assert (update["delivery_id"], update["event_type"]) == (delivery, "delivered")
            assert client.pubsub_channels("*")
        wait_until(lambda: not client.pubsub_channels("*"))


@pytest.fixture
def ask(db, monkeypatch) -> Iterator[Ask]:
    """Post webhooks to the application in this process; an error that nobody handles is answered with 500."""
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", db.url)
    for name, value in readme.exports("fastapi").items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(readme.EXAMPLES / "fastapi")
    shop = importlib.import_module("shop")

    async def answers(requests: Iterable[dict]) -> list[httpx.Response]:
        transport = httpx.ASGITransport(shop.api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            found = [await client.post("/webhooks/postmark", **{"auth": LOGIN, **one}) for one in requests]
        await shop.engine.dispose()
        return found

    yield lambda *requests: asyncio.run(answers(requests))
    for name in ("shop", "postmark", "updates"):
        del sys.modules[name]


GOOD = payload("Open", "m-1", ADA)
TAKEN = [
    GOOD | {"RecordType": "Newer"},
    GOOD | {"RecordType": ["Open"]},
    {"RecordType": "Open"},
    {},
    GOOD | {"MessageID": 7, "Recipient": None, "ReceivedAt": "yesterday"},
    GOOD | {"MessageID": "m" * 100_000, "ReadSeconds": float("nan")},
    GOOD | {"ReceivedAt": "2026-05-01T10:00:00"},
    GOOD | {"ReceivedAt": 1},
    GOOD | {"MessageID": "\x00\ud800", "Recipient": "\ud800@example.com"},
]
REFUSED = [GOOD | {"MessageID": {"a": 1}}, GOOD | {"Recipient": [ADA]}, GOOD | {"ID": [1]}, [f"\ud800 {ADA}"], None]
NO_JSON = [f'"{ADA}', "", b"\xff\xfe", "[" * 100_000]


def test_no_payload_is_answered_with_500(ask, db):
    """What can be recorded is; what cannot is refused, without a word of it."""
    as_json = {"Content-Type": "application/json"}
    bodies = [*map(json.dumps, TAKEN), *map(json.dumps, REFUSED), *NO_JSON]
    answers = ask(*({"content": body, "headers": as_json} for body in bodies))
    said = [answer.status_code for answer in answers]
    assert said[: len(TAKEN)] == len(TAKEN) * [200]
    assert set(said[len(TAKEN) :]) <= {400, 422}
    assert not [answer.text for answer in answers if "@example" in answer.text]
    assert db.value("SELECT count(*) FROM mailglass_events") == len(TAKEN)


def test_whoever_does_not_know_the_password_is_refused(ask, db):
    """Nothing is recorded."""
    user, password = LOGIN
    logins = [None, ("", ""), (user, "wrong"), ("wrong", password), (f"{user}x", password), ("pöst", "ß")]
    answers = ask(*({"json": GOOD, "auth": login} for login in logins))
    assert {(one.status_code, one.headers["WWW-Authenticate"]) for one in answers} == {(401, "Basic")}
    assert db.value("SELECT count(*) FROM mailglass_events") == 0


def test_a_database_that_refuses_is_answered_so_that_postmark_asks_again(ask, db):
    """And nothing that is not there is reported as recorded."""
    db.run("ALTER TABLE mailglass_events RENAME TO away")
    (answer,) = ask({"json": GOOD})
    assert answer.status_code == 503
    db.run("ALTER TABLE away RENAME TO mailglass_events")
    (answer,) = ask({"json": GOOD})
    assert answer.json() == {"orphan": True}
