"""`examples/fastapi`, started and used by its README, with Postmark's payloads of every kind."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import redis

import readme
from mailglass_reconcile.testing.servers import free_port
from postmark_payloads import payload, payloads_of_all_kinds
from processes import Process
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

ADA, BOB = "ada@example.com", "bob@example.com"
STATE = """
SELECT lower(recipient), last_event_type, last_event_at::text, terminal, delivered_at::text, bounced_at::text,
       complained_at::text
  FROM mailglass_deliveries WHERE provider_message_id = :id ORDER BY recipient
"""
BY_TYPE = "SELECT type, count(*) FROM mailglass_events WHERE metadata ->> 'message_id' = :id GROUP BY type"
LOGIN = readme.login("fastapi")
OPEN = "SELECT count(*) FROM mailglass_open_orphans"
RECORDED = "SELECT count(*) FROM mailglass_events WHERE type <> 'dispatched'"


def terminal(db, redis_url: str) -> dict[str, str]:
    """Return the environment of a reader's terminal."""
    return {**readme.environment(db, redis_url), **readme.exports("fastapi")}


@contextmanager
def running(db, redis_url: str) -> Iterator[tuple[str, Process]]:
    """Run the application by the README's command on a free port; yield its address and the process."""
    env = terminal(db, redis_url)
    readme.run("fastapi", readme.command("fastapi", "migrate").text, env)
    port = free_port()
    start = re.sub(r"--port \d+", f"--port {port}", readme.command("fastapi", "uvicorn shop").text)
    with readme.start("fastapi", start, env, "startup complete") as process:
        yield f"http://127.0.0.1:{port}", process


def first(message_id: str) -> dict[str, str]:
    """Return a delivery report that comes before all others."""
    return {**payload("Delivery", message_id, ADA), "DeliveredAt": "2026-05-01T10:00:00Z"}


def post(base: str, report: object) -> None:
    """Post a webhook."""
    assert httpx.post(f"{base}/webhooks/postmark", json=report, auth=LOGIN).raise_for_status().text == "ok\n"


@pytest.mark.slow
def test_deliveries_end_the_same_in_either_order(db, redis_url, mailglass_webhook_first):
    """Every kind comes after the send, before its commit, and once more."""
    with running(db, redis_url) as (base, process):
        answer = readme.curl(readme.command("fastapi", "curl", "/messages").text, base).json()
        later = answer["message_id"]
        post(base, first(later))
        for report in payloads_of_all_kinds(later, ADA, BOB):
            post(base, report)
        assert db.value(OPEN) == 0

        def report_early() -> int:
            message_id = re.findall(r"Postmark took (\S+)", process.output)[-1]
            post(base, first(message_id))
            for report in payloads_of_all_kinds(message_id, ADA, BOB):
                post(base, report)
            return db.value(OPEN)

        def send() -> dict:
            return httpx.post(f"{base}/messages", json=[ADA, BOB], timeout=PATIENCE).json()

        sent, waiting = mailglass_webhook_first(send, report_early)
        assert (sent["linked"], waiting) == (12, 12)
        early = sent["message_id"]
        before = db.value(RECORDED)
        for report in (*payloads_of_all_kinds(later, ADA, BOB), *payloads_of_all_kinds(early, ADA, BOB)):
            post(base, report)
        assert db.value(RECORDED) == before
        assert "Traceback" not in process.output

    assert db.rows(STATE, id=early) == db.rows(STATE, id=later)
    assert [tuple(row)[:4] for row in db.rows(STATE, id=early)] == [
        (ADA, "autoresponded", "2026-05-01 10:00:05.123456", True),
        (BOB, "complained", "2026-05-01 10:00:10.123456", True),
    ]
    expected = {"autoresponded": 1, "bounced": 1, "clicked": 1, "complained": 1, "deferred": 2, "delivered": 3}
    expected |= {"opened": 2, "unsubscribed": 1, "dispatched": 2}
    assert dict(map(tuple, db.rows(BY_TYPE, id=early))) == dict(map(tuple, db.rows(BY_TYPE, id=later))) == expected
    assert db.value(OPEN) == 0


@pytest.mark.slow
def test_orders_of_the_shop_show_what_became_of_their_mails(db, redis_url):
    """The table is the shop's own; its rows are joined with the deliveries."""
    port = free_port()
    start = re.sub(r"--port \d+", f"--port {port}", readme.command("fastapi", "uvicorn orders").text)
    with (
        running(db, redis_url) as (base, _),
        readme.start("fastapi", start, terminal(db, redis_url), "startup complete") as process,
    ):
        ordering, listing = (item.text for item in readme.commands("fastapi") if ":8001/orders" in item.text)
        sent = readme.curl(ordering, f"http://127.0.0.1:{port}").json()["message_id"]
        (order,) = readme.curl(listing, f"http://127.0.0.1:{port}").json()
        assert (order["order"], order["status"]) == (1, "dispatched")
        readme.trigger("fastapi", "bounced", base, sent, terminal(db, redis_url))
        (order,) = readme.curl(listing, f"http://127.0.0.1:{port}").json()
        assert (order["status"], order["since"][-1]) == ("bounced", "Z")
        assert "Traceback" not in process.output


@pytest.mark.slow
def test_a_browser_sees_what_happens_to_a_delivery(db, redis_url):
    """They are server-sent events, on one connection to Redis that closes when the browser leaves."""
    with running(db, redis_url) as (base, _), redis.Redis.from_url(redis_url) as client:
        sent = httpx.post(f"{base}/messages", json=[ADA], timeout=PATIENCE).json()["message_id"]
        delivery = db.value("SELECT id::text FROM mailglass_deliveries")
        with httpx.stream("GET", f"{base}/deliveries/{delivery}/updates", timeout=PATIENCE) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = (line for line in answer.iter_lines() if line)
            assert [next(lines), next(lines)] == ["event: refresh", "data: {}"]
            readme.trigger("fastapi", "delivered", base, sent, terminal(db, redis_url))
            update = json.loads(next(lines).removeprefix("data: "))
            assert (update["delivery_id"], update["event_type"]) == (delivery, "delivered")
            assert client.pubsub_channels("*")
        wait_until(lambda: not client.pubsub_channels("*"))


def test_the_mapping_of_the_example_is_the_packages():
    """The example has no mapping of its own, and one line receives every provider."""
    text = (readme.EXAMPLES / "fastapi" / "shop.py").read_text()
    assert 'api.mount("/webhooks", webhook_app())' in text
    assert "WebhookEvent" not in text
