"""What a receiver tells: one line for each webhook, and counters for Prometheus, none of them with an address."""

import json
import logging
import re

import httpx
import pytest

import senders
from anymail_wire import AUTH
from mailglass_reconcile import Sent, broadcast, record_send
from mailglass_reconcile.rules import pauses
from mailglass_reconcile.webhooks import formats
from receivers import SECRETS, ask, first, mounted, now, post, receiving
from receivers import published as _published  # noqa: F401 - a fixture of every test

TOKEN = "a-token-of-24-characters"  # noqa: S105


def batch(*message_ids: str) -> senders.Posted:
    """Return a request of SendGrid with an event for each message."""
    common = {"event": "open", "timestamp": 1_772_366_400, "email": "ada@example.com"}
    told = [{**common, "sg_message_id": one, "sg_event_id": one} for one in message_ids]
    return senders.signed("sendgrid", json.dumps(told).encode(), now())


def lines(caplog) -> list[str]:
    """Return the receiver's lines of the log."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("mailglass_reconcile.webhooks")]


def test_a_webhook_is_one_line_of_what_became_of_its_events(db, caplog):
    """At INFO."""
    caplog.set_level(logging.INFO)
    with db.engine.begin() as connection:
        recorded = record_send(
            connection, provider="sendgrid", sent=[Sent(recipient="ada@example.com", message_id="m-1")]
        )
    broadcast(recorded)
    requests = batch("m-1", "m-2"), batch("m-1", "m-2", "m-3"), batch("m-1"), batch()
    post(mounted(), "/webhooks/sendgrid", *requests)
    assert lines(caplog) == [
        "sendgrid: 2 events, 1 attached, 1 waiting",
        "sendgrid: 3 events, 1 waiting, 2 repeated",
        "sendgrid: 1 event, 1 repeated",
        "sendgrid: 0 events",
    ]
    assert "ada" not in caplog.text


def test_an_unknown_provider_is_a_warning_once_a_minute(db, caplog, monkeypatch):
    """With the name that was meant, if it looks like none of a person; a provider without a secret has its own."""
    at = 100.0
    monkeypatch.setattr(pauses.time, "monotonic", lambda: at)
    receiver = mounted(secrets={"postmark": AUTH})
    paths = ["postmrk%0A", "ada@example.com", "x" * 5_000, "mailgun", "mailgun"]
    for time in (100.0, 130.0, 160.0):
        at = time
        for path in paths:
            assert post(receiver, f"/webhooks/{path}", first("postmark"))[0].status_code == 404
    assert [line.partition("404: ")[2] for line in lines(caplog)] == [
        "its address ends with no provider's name, but 'postmrk\\n'",
        "it has no secret",
    ] * 2
    at = 230.0
    post(receiver, "/webhooks/ada@example.com", first("postmark"))
    assert "ada" not in caplog.text


def test_brevo_gets_429_where_others_get_503(db, caplog):
    """It discards an event after any 5xx; both are asked to try again after 30 seconds."""
    db.run("ALTER TABLE mailglass_events RENAME TO elsewhere")
    for provider in SECRETS:
        (answer,) = post(mounted(), f"/webhooks/{provider}", first(provider))
        assert answer.status_code == (429 if provider == "brevo" else 503), provider
        assert answer.headers["retry-after"] == "30"
    db.run("ALTER TABLE elsewhere RENAME TO mailglass_events")


def scraped(text: str) -> dict[str, int]:
    """Return the samples of an exposition."""
    return {
        name: int(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    }


def test_the_command_tells_and_counts(db, redis_url, tmp_path, monkeypatch):
    """Over HTTP; its log has a line for each webhook, and only who has the token may read the counters."""
    one = first("postmark")
    changed = senders.signed("mailersend", b'{"type": "activity.delivered", "data": {"id": "7"}}')
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    with (
        receiving(db, redis_url, tmp_path, MAILGLASS_WEB_TOKEN=TOKEN) as (base, log),
        httpx.Client(base_url=base) as client,
    ):
        for each in (one, one, one._replace(headers={}), one._replace(body=b"{")):
            client.post("/postmark", content=each.body, headers=each.headers)
        client.post("/mailersend", content=changed.body, headers=changed.headers)
        client.post("/pigeon")
        db.run("ALTER TABLE mailglass_events RENAME TO elsewhere")
        for _ in range(3):
            client.post("/brevo", content=first("brevo").body, headers=first("brevo").headers)
        db.run("ALTER TABLE elsewhere RENAME TO mailglass_events")
        answers = [client.get("/metrics", headers=headers) for headers in ({}, {"Authorization": "Bearer x"}, allowed)]
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    assert answers[2].headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert {name: value for name, value in scraped(answers[2].text).items() if value} == {
        'mailglass_reconcile_recording_failures_total{cause="DatabaseRefusedError"}': 3,
        'mailglass_reconcile_webhooks_total{provider="brevo",result="failed"}': 3,
        'mailglass_reconcile_webhooks_total{provider="mailersend",result="received"}': 1,
        'mailglass_reconcile_webhooks_total{provider="postmark",result="received"}': 2,
        'mailglass_reconcile_webhooks_total{provider="postmark",result="refused"}': 2,
        'mailglass_reconcile_webhook_format_warnings_total{provider="mailersend",type="delivered"}': 1,
    }
    told = log.read_text()
    assert "INFO: postmark: 1 event, 1 waiting\n" in told
    assert "INFO: postmark: 1 event, 1 repeated\n" in told
    assert len(re.findall("^(INFO|WARNING|ERROR): ", told, re.MULTILINE)) == 8  # with the one of the format
    assert told.count("a webhook of brevo was not recorded: ") == 1, "one line for each cause and minute"
    assert "Traceback" not in told
    assert "@" not in told


def test_prometheus_reads_the_counters(db, monkeypatch):
    """By its own parser, each with what it is."""
    parser = pytest.importorskip("prometheus_client.parser")
    monkeypatch.setattr(formats, "_counts", formats.Counter({("resend", "opened"): 2}))
    receiver = mounted_receiver()
    receiver.results.update({("postmark", "received"): 3})

    async def talk(client):
        return await client.get("/metrics", headers={"Authorization": f"bearer {TOKEN}"})

    families = list(parser.text_string_to_metric_families(ask(receiver, talk).text))
    assert [(one.name, one.type, one.samples[0].value) for one in families[:2]] == [
        ("mailglass_reconcile_webhooks", "counter", 3),
        ("mailglass_reconcile_webhook_format_warnings", "counter", 2),
    ]
    assert [one.name.removeprefix("mailglass_reconcile_") for one in families[2:]] == ["recording_failures", "messages"]


def mounted_receiver():
    """Return a receiver as the command serves it."""
    receiver = mounted().routes[0].app
    receiver.metrics_token = TOKEN
    return receiver


def test_a_mounted_application_has_no_metrics(db):
    """Its own are the application's."""

    async def talk(client):
        return await client.get("/webhooks/metrics", headers={"Authorization": f"Bearer {TOKEN}"})

    assert ask(mounted(), talk).status_code == 404
