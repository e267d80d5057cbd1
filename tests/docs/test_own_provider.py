"""The page on custom providers is a complete example, whose files are run as an adopter would."""

import datetime as dt
import json
import os
import re
import subprocess
import sys

import pytest

import pages
from mailglass_reconcile.providers.registry import make_request, read_events

pytestmark = pytest.mark.version_independent

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
PLUGIN = "mailglass_reconcile.testing.plugin"
TEST = """
import hashlib
import hmac
import json
import time

import pytest
import shop
import sqlalchemy as sa
from starlette.testclient import TestClient

from mailglass_reconcile import Sent, broadcast, record_send


@pytest.fixture
def client(mailglass_database, monkeypatch):
    monkeypatch.setenv("MAILGLASS_IMPORTS", "acme")
    monkeypatch.setenv("MAILGLASS_WEBHOOK_SECRETS", "acme=secret-of-the-test")
    return TestClient(shop.application())


def test_a_webhook_reaches_its_delivery(client, mailglass_database):
    items = [{"id": "e-1", "kind": "arrived", "at": time.time(), "to": "ada@example.com", "message": {"id": "m-1"}}]
    body = json.dumps(items).encode()
    signature = hmac.new(b"secret-of-the-test", body, hashlib.sha256).hexdigest()
    assert client.post("/webhooks/acme", content=body).status_code == 401
    assert client.post("/webhooks/acme", content=body, headers={"X-Acme-Signature": signature}).status_code == 200
    with mailglass_database.engine.begin() as connection:
        recorded = record_send(connection, provider="acme", sent=[Sent(recipient="ada@example.com", message_id="m-1")])
    broadcast(recorded)
    with mailglass_database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT last_event_type FROM mailglass_deliveries")) == "delivered"
"""
EXAMPLE = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_example_receives_a_webhook_before_its_send(mailglass_postgres_url, mailglass_redis_url, tmp_path):
    """Reader, signature, rule, application and test are in a folder of their own."""
    result = dict(EXAMPLE.findall((pages.ROOT / "docs" / "own-provider.md").read_text()))
    assert list(result) == ["acme.py", "shop.py"]
    for name, text in {**result, "test_acme.py": TEST}.items():
        (tmp_path / name).write_text(text)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAILGLASS_", "PYTEST_"))}
    servers = {"MAILGLASS_TEST_DATABASE_URL": mailglass_postgres_url, "MAILGLASS_TEST_REDIS_URL": mailglass_redis_url}
    inherited["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
        "1"  # our plugin is named, because loading the others takes as long as the test
    )
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", f"--rootdir={tmp_path}"],
        cwd=tmp_path, env={**inherited, **servers, "PYTHONPATH": str(pages.ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert re.search("^1 passed", process.stdout, re.MULTILINE), process.stdout + process.stderr


def test_the_record_of_a_provider_reads_and_verifies():
    """Nothing else has to be written."""
    (block,) = [block for block in pages.blocks(pages.ROOT / "CONTRIBUTING.md") if "PROVIDER = Provider(" in block.text]
    module: dict = {}
    exec(block.text, module)  # noqa: S102 - a page of ours
    provider = module["PROVIDER"]
    values = {"at": int(AT.timestamp()), "id": "e-1", "message": {"id": "m-1"}, "to": "ada@example.com"}
    for kind, type_ in (("arrived", "delivered"), ("returned", "bounced"), ("read", "opened")):
        body = json.dumps([{"kind": kind, **values}]).encode()
        signed = provider.authentication.sign(body, "change-me", AT.timestamp(), None)
        request = make_request(signed.body, signed.headers)
        provider.authentication.verify(request, "change-me", AT.timestamp())
        (event,) = read_events(provider, request)
        assert (event.type, event.message_id, event.recipient, event.occurred_at) == (
            type_,
            "m-1",
            "ada@example.com",
            AT,
        )
