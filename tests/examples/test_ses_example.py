"""`examples/ses`, with a server that answers as SES does, and notifications that are signed as SNS signs."""

import importlib.util
import json
import re
import shlex
import types
from collections.abc import Iterator

import botocore.session
import botocore.validate
import pytest
import sqlalchemy as sa
from botocore import xform_name
from fastapi.testclient import TestClient
from pydantic import SecretStr

import readme
import senders
from anymail_webhooks import ses_event
from mailglass_reconcile import configure
from mailglass_reconcile.providers import sns
from ses_api import ses_api

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

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
    for name, value in {**EXPORTED, **keys, "MAILGLASS_DATABASE_URL": db.sqlalchemy_url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sns, "fetch", senders.serve_certificate)
    secrets = SecretStr(EXPORTED["MAILGLASS_WEBHOOK_SECRETS"])
    configure(engine=db.engine, settings=db.settings.model_copy(update={"webhook_secrets": secrets}))
    module = load("shop.py")
    with TestClient(module.api) as client:
        yield client
        client.portal.call(module.engine.dispose)


def load(name: str) -> types.ModuleType:
    """Import a file of the example."""
    specification = importlib.util.spec_from_file_location(f"ses_{name[:-3]}", readme.EXAMPLES / "ses" / name)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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
    text = "".join(block.text for block in readme.blocks_of("ses"))
    listed = re.search(r'"MatchingEventTypes": \[(.*?)\]', text, re.S)[1]
    kinds = {name.upper().replace(" ", "_") for name in ("Send", "Reject", "Bounce", "Complaint", "Delivery", "Open")}
    kinds |= {"CLICK", "RENDERING_FAILURE", "DELIVERY_DELAY", "SUBSCRIPTION"}
    assert set(re.findall(r'"(\w+)"', listed)) == kinds
    arn = EXPORTED["MAILGLASS_WEBHOOK_SECRETS"].removeprefix("ses=")
    assert set(re.findall(r"arn:aws:sns:[\w:-]+", text)) == {arn} == {senders.ARN}


@pytest.mark.parametrize("text", [command.text for command in readme.commands("ses") if command.text[:4] == "aws "])
def test_a_command_of_aws_calls_an_operation_with_parameters_that_it_has(text):
    """What is JSON in a parameter can be read, and has the shape that the operation expects."""
    _, service, name, *words = shlex.split(text.replace("\\\n", " "))
    operation = botocore.session.get_session().get_service_model(service).operation_model(name.title().replace("-", ""))
    members = {f"--{xform_name(member, '-')}": member for member in operation.input_shape.members}
    members["--notification-endpoint"] = "Endpoint"  # whose name the command line has for itself
    parameters = {}
    while words:
        member = members[words.pop(0)]
        if operation.input_shape.members[member].type_name == "boolean":
            parameters[member] = True
            continue
        value = words.pop(0)
        parsed = json.loads(value) if value.startswith("{") else value
        is_text = operation.input_shape.members[member].type_name == "string"
        parameters[member] = value if is_text else parsed
    report = botocore.validate.ParamValidator().validate(parameters, operation.input_shape)
    assert report.generate_report() == ""
    for attribute in parameters.get("Attributes", {}).values():
        assert isinstance(json.loads(attribute), dict)


def test_the_consumer_records_what_a_queue_has_and_leaves_what_it_cannot_read(db, monkeypatch, caplog):
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", db.sqlalchemy_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", EXPORTED["AWS_DEFAULT_REGION"])
    configure(engine=db.engine, settings=db.settings)
    delivery, bounce = (
        ses_event(kind, MESSAGE_ID, ["bounce@simulator.amazonses.com"], senders.NOW) for kind in ("Delivery", "Bounce")
    )
    (notification,) = senders.make_requests("ses", [bounce])
    bodies = ["no JSON", json.dumps(delivery), notification.body.decode()]  # raw, and as SNS writes it
    queued = [{"Body": body, "ReceiptHandle": str(number)} for number, body in enumerate(bodies)]
    deleted: list[str] = []
    module = load("consumer.py")
    module.sqs = types.SimpleNamespace(
        receive_message=lambda **_options: {"Messages": queued},
        delete_message=lambda QueueUrl, ReceiptHandle: deleted.append(ReceiptHandle),  # noqa: N803 - boto3's names
    )
    module.consume("https://sqs.eu-central-1.amazonaws.com/123456789012/mail")
    module.engine.dispose()
    assert deleted == ["1", "2"]
    assert "a message cannot be read" in caplog.text
    assert db.rows("SELECT type FROM mailglass_events ORDER BY type") == [("bounced",), ("delivered",)]


def test_the_consumer_leaves_a_message_in_the_queue_that_it_cannot_record(monkeypatch):
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", EXPORTED["AWS_DEFAULT_REGION"])
    body = json.dumps(ses_event("Bounce", MESSAGE_ID, ["bounce@simulator.amazonses.com"], senders.NOW))
    deleted: list[str] = []
    module = load("consumer.py")
    module.sqs = types.SimpleNamespace(
        receive_message=lambda **_options: {"Messages": [{"Body": body, "ReceiptHandle": "1"}]},
        delete_message=lambda QueueUrl, ReceiptHandle: deleted.append(ReceiptHandle),  # noqa: N803 - boto3's names
    )
    with pytest.raises(sa.exc.OperationalError):
        module.consume("https://sqs.eu-central-1.amazonaws.com/123456789012/mail")
    assert deleted == []
