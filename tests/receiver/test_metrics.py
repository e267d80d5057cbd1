"""Counters of a receiver for Prometheus, without addresses."""

import re
from collections import Counter
from contextlib import suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import pages
import senders
from mailglass_reconcile import exposition, telemetry
from receivers import ask, first, mount_receiver, receiving
from receivers import published as _published  # noqa: F401 - a fixture of every test
from waiting import PATIENCE

pytestmark = pytest.mark.version_independent

DOCTOR = (pages.ROOT / "docs/doctor.md").read_text()
SEARCH = re.compile(r"grep (?:-e )?'([^']*)'(?: -e '([^']*)')?")
TOKEN = "a-token-of-24-characters"  # noqa: S105


def parse_samples(text: str) -> dict[str, int]:
    """Return the samples of an exposition."""
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: int(float(value)) for name, _, value in samples}


def make_mounted_receiver():
    """Return a receiver as the command serves it."""
    receiver = mount_receiver().routes[0].app
    receiver.metrics_token = TOKEN
    return receiver


@pytest.mark.slow
def test_the_command_logs_and_counts(db, tmp_path, monkeypatch):
    """Its log has a line for each webhook, and only a request with the token may read the counters."""
    request = first("postmark")
    changed = senders.sign_request("mailersend", b'{"type": "activity.delivered", "data": {"id": "7"}}')
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    with (
        receiving(db, tmp_path, MAILGLASS_WEB_TOKEN=TOKEN) as (base, process),
        httpx.Client(base_url=base, timeout=PATIENCE) as client,
    ):
        for webhook in (request, request, request._replace(headers={}), request._replace(body=b"{")):
            with suppress(httpx.TransportError):  # a refused one may be closed before the client has sent its body
                client.post("/postmark", content=webhook.body, headers=webhook.headers)
        client.post("/mailersend", content=changed.body, headers=changed.headers)
        client.post("/pigeon")
        db.run("ALTER TABLE mailglass_events RENAME TO elsewhere")
        for _ in range(3):
            client.post("/brevo", content=first("brevo").body, headers=first("brevo").headers)
        db.run("ALTER TABLE elsewhere RENAME TO mailglass_events")
        answers = [client.get("/metrics", headers=headers) for headers in ({}, {"Authorization": "Bearer x"}, allowed)]
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    assert answers[2].headers["content-type"] == exposition.CONTENT_TYPE
    assert {name: value for name, value in parse_samples(answers[2].text).items() if value} == {
        'mailglass_reconcile_recording_failures_total{cause="SchemaOutdatedError"}': 3,
        'mailglass_reconcile_webhooks_total{provider="brevo",result="failed"}': 3,
        'mailglass_reconcile_webhooks_total{provider="mailersend",result="received"}': 1,
        'mailglass_reconcile_webhooks_total{provider="postmark",result="received"}': 2,
        'mailglass_reconcile_webhooks_total{provider="postmark",result="refused"}': 2,
        'mailglass_reconcile_webhooks_total{provider="unknown",result="refused"}': 1,
        'mailglass_reconcile_webhook_format_warnings_total{provider="mailersend",type="delivered"}': 1,
    }
    text = process.stderr
    assert "INFO: postmark: 1 event, 1 waiting\n" in text
    assert "INFO: postmark: 1 event, 1 repeated\n" in text
    logged = re.findall("^(?:INFO|WARNING|ERROR): (?!.*broadcast).*", text, re.MULTILINE)
    assert len(logged) == 8, logged  # including that of the format
    assert text.count("a webhook of brevo was not recorded: ") == 1, "one line for each cause and minute"
    assert "Traceback" not in text
    assert "@" not in text
    for alert in ("RecordingFails", "WebhookFormat", "WebhooksRefused"):
        log_lines = SEARCH.search(DOCTOR.partition(f"### MailglassReconcile{alert}\n\n")[2]).groups()
        assert all(line in text for line in log_lines if line), alert


def test_prometheus_reads_the_counters(db, monkeypatch):
    """Prometheus's own parser reads each with its type."""
    counts = {"format_warnings": Counter({("resend", "opened"): 2}), "webhooks": Counter({("postmark", "received"): 3})}
    monkeypatch.setattr(telemetry, "_counts_of_providers", counts)
    receiver = make_mounted_receiver()

    async def talk(client):
        return await client.get("/metrics", headers={"Authorization": f"bearer {TOKEN}"})

    families = list(text_string_to_metric_families(ask(receiver, talk).text))
    assert [(family.name, family.type, family.samples[0].value) for family in families[:2]] == [
        ("mailglass_reconcile_webhooks", "counter", 3),
        ("mailglass_reconcile_webhook_format_warnings", "counter", 2),
    ]
    assert "404" in families[0].documentation, "also webhooks without a secret, and of unknown names, are counted"
    assert [family.name.removeprefix("mailglass_reconcile_") for family in families[2:]] == [
        "recording_failures",
        "messages",
    ]


def test_a_mounted_application_has_no_metrics(db):
    """The application has its own; the response says what would have ours."""

    async def talk(client):
        return await client.get("/webhooks/metrics", headers={"Authorization": f"Bearer {TOKEN}"})

    answer = ask(mount_receiver(), talk)
    assert (answer.status_code, "MAILGLASS_WEB_TOKEN" in answer.text) == (404, True)
