"""`examples/ses`, with a server that answers as SES does, and notifications that are signed as SNS signs."""

import importlib.util
import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

import readme
import senders
from anymail_webhooks import ses_event
from mailglass_reconcile import configure
from mailglass_reconcile.providers import sns
from ses_api import ses_api

pytestmark = pytest.mark.version_independent

MESSAGE_ID = "0107019a-2f6e-4c6d-9a53-3f2b8f1c6a10-000000"
EXPORTED = readme.exports("ses")


@pytest.fixture
def ses_url() -> Iterator[str]:
    """A server that accepts each message of SES's API."""
    with ses_api(lambda: MESSAGE_ID) as url:
        yield url


@pytest.fixture
def shop(db, ses_url, monkeypatch) -> Iterator[TestClient]:
    """The application, with the environment of its README."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL_SESV2": ses_url}
    for name, value in {**EXPORTED, **keys, "MAILGLASS_DATABASE_URL": db.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sns, "fetch", senders.serve_certificate)
    secrets = SecretStr(EXPORTED["MAILGLASS_WEBHOOK_SECRETS"])
    configure(engine=db.engine, settings=db.settings.model_copy(update={"webhook_secrets": secrets}))
    specification = importlib.util.spec_from_file_location("ses_shop", readme.EXAMPLES / "ses" / "shop.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with TestClient(module.api) as client:
        yield client
    module.engine.dispose()


def post(shop: TestClient, kind: str) -> int:
    """Post an event about the message as SNS does, again while the answer asks for it; return the last status."""
    event = ses_event(kind, MESSAGE_ID, ["bounce@simulator.amazonses.com"], senders.NOW)
    (posted,) = senders.make_requests("ses", [event])
    for _ in range(3):
        status = shop.post("/webhooks/ses", content=posted.body, headers=posted.headers).status_code
        if status != 503:
            break
    return status


@pytest.mark.parametrize("first", ["webhook", "send"])
def test_a_bounce_is_shown_whichever_comes_first(shop, first):
    if first == "webhook":
        assert post(shop, "Bounce") == 200
    sent = shop.post("/messages", json={"to": "bounce@simulator.amazonses.com"})
    assert (sent.status_code, sent.json()["linked"]) == (202, int(first == "webhook"))
    if first == "send":
        assert post(shop, "Bounce") == 200
    assert shop.get(f"/deliveries/{sent.json()['delivery_id']}").json() == {"status": "bounced"}


def test_the_readme_subscribes_to_every_event_that_is_read():
    """Its topic is the secret, and the destination leads to it."""
    text = (readme.EXAMPLES / "ses" / "README.md").read_text()
    listed = re.search(r'"MatchingEventTypes": \[(.*?)\]', text, re.S)[1]
    kinds = {name.upper().replace(" ", "_") for name in ("Send", "Reject", "Bounce", "Complaint", "Delivery", "Open")}
    kinds |= {"CLICK", "RENDERING_FAILURE", "DELIVERY_DELAY", "SUBSCRIPTION"}
    assert set(re.findall(r'"(\w+)"', listed)) == kinds
    arn = EXPORTED["MAILGLASS_WEBHOOK_SECRETS"].removeprefix("ses=")
    assert set(re.findall(r"arn:aws:sns:[\w:-]+", text)) == {arn} == {senders.ARN}
