"""Azure Communication Services through Event Grid, as documented, with its handshakes."""

import json

import pytest

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.providers import sns
from mailglass_reconcile.webhooks import SignatureError, parse, receive, verify
from receivers import ask, mount_receiver, post
from senders import load_payloads, secret_of, sign_request

pytestmark = pytest.mark.version_independent

COUNT = "SELECT count(*) FROM mailglass_events"
URL = "https://rp-eastus2.eventgrid.azure.net:553/eventsubscriptions/estest/validate?id=512d38b6&t=2018-04-26"
CODE = "512d38b6-c7b8-40c8-89fe-f46f9e9622b6"
VALIDATION = {
    "id": "2d1781af-3a4c-4d7c-bd0c-e34b19da4e66",
    "topic": "/subscriptions/xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx",
    "subject": "",
    "data": {"validationCode": CODE, "validationUrl": URL},
    "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
    "eventTime": "2018-01-25T22:12:19.4556811Z",
    "metadataVersion": "1",
    "dataVersion": "1",
}
"""https://learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema."""


def test_an_event_in_the_schema_of_cloud_events_is_the_same():
    """Alone or in a batch: https://learn.microsoft.com/azure/event-grid/cloud-event-schema."""
    (payload,) = [event.payload for event in load_payloads("azure") if "specversion" in event.payload]
    (alone,) = parse("azure", json.dumps(payload).encode(), content_type="application/cloudevents+json")
    (batch,) = parse("azure", json.dumps([payload]).encode(), content_type="application/cloudevents-batch+json")
    assert alone == batch
    assert (alone.type, alone.provider_event_id) == ("delivered", payload["id"])


def test_other_events_of_the_resource_give_none():
    """SMS, calls and chats have such events."""
    sms_event = {"id": "1", "eventType": "Microsoft.Communication.SMSReceived", "data": {"messageId": "m"}}
    assert parse("azure", json.dumps([sms_event, VALIDATION]).encode()) == []


def test_a_short_secret_is_a_fault_of_configuration():
    """It is the whole value of a header: `Bearer` alone could be guessed."""
    with pytest.raises(ConfigurationError, match="16 characters"):
        verify("azure", b"[]", {"Authorization": "Bearer x"}, secret="Bearer x")  # noqa: S106


def test_the_subscription_is_validated_by_the_answer(db, monkeypatch):
    """This needs the secret; nothing is fetched."""
    monkeypatch.setattr(sns, "fetch", pytest.fail)
    request = sign_request("azure", json.dumps([VALIDATION]).encode())
    (answer,) = post(mount_receiver(), "/webhooks/azure", request)
    assert (answer.status_code, answer.json()) == (200, {"validationResponse": CODE})
    assert db.value(COUNT) == 0


@pytest.mark.parametrize(("secret", "status"), [(secret_of("azure"), 200), ("wrong", 503)])
def test_cloud_events_ask_with_options(db, secret, status):
    """https://learn.microsoft.com/azure/event-grid/end-point-validation-cloud-events-schema."""
    headers = {"WebHook-Request-Origin": "eventgrid.azure.net", "Authorization": secret}

    async def options(client):
        return await client.options("/webhooks/azure", headers=headers)

    answer = ask(mount_receiver(), options)
    assert answer.status_code == status
    assert answer.headers.get("WebHook-Allowed-Origin") == ("eventgrid.azure.net" if status == 200 else None)


def test_receive_confirms_by_one_get_of_event_grids_own_address(db, monkeypatch):
    """`receive` has no response that could carry the code."""
    fetched = []
    monkeypatch.setattr(sns, "fetch", lambda url: fetched.append(url) or b"")
    headers, secret = {"Authorization": secret_of("azure")}, secret_of("azure")
    with db.engine.begin() as connection:
        assert receive(connection, "azure", json.dumps([VALIDATION]).encode(), headers, secret=secret) == []
        for url in (
            URL.replace("azure.net", "azure.net.evil.example"),
            "https://evil.example/eventgrid.azure.net",
            None,
        ):
            evil = VALIDATION | {"data": {"validationCode": CODE, "validationUrl": url}}
            with pytest.raises(SignatureError, match="not confirmed"):
                receive(connection, "azure", json.dumps([evil]).encode(), headers, secret=secret)
        with pytest.raises(SignatureError):
            receive(connection, "azure", json.dumps([VALIDATION]).encode(), {"Authorization": "x"}, secret=secret)
    assert fetched == [URL]
