"""Webhooks over HTTP, to the command `receive` and to a mounted application, and their rows in Postgres."""

import asyncio

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session

import mailglass_reconcile
import senders
from mailglass_reconcile import ConfigurationError, Sent, broadcast, record_send
from mailglass_reconcile.providers import sns
from mailglass_reconcile.providers.registry import PROVIDERS
from mailglass_reconcile.receiver import app
from mailglass_reconcile.receiver.admission import AdmissionControl
from mailglass_reconcile.receiver.opening import public_url
from mailglass_reconcile.receiver.verifier import VerificationThread
from mailglass_reconcile.rules import event_types
from mailglass_reconcile.webhooks import SignatureError, parse, receive, webhook_app
from receivers import SECRETS, ask, first, mount_receiver, now, post, receiving, requests_of
from receivers import published as _published  # noqa: F401 - a fixture of every test
from senders import AUTH, MANDRILL_URL, load_payloads, notification
from waiting import wait_until

COUNT = "SELECT count(*) FROM mailglass_events WHERE type <> 'dispatched'"
STATE = """
SELECT lower(recipient), last_event_type, terminal, delivered_at, bounced_at, complained_at
  FROM mailglass_deliveries WHERE tenant_id = :tenant ORDER BY 1, id
"""
TERMINAL = {"delivered", "bounced", "complained", "rejected", "failed", "suppressed"}


def sends_of(provider: str) -> list[Sent]:
    """Return the sends of the documented events."""
    events = [event for request in requests_of(provider) for event in parse(provider, request.body, request.headers)]
    pairs = {(event.message_id, event.recipient) for event in events if event.message_id is not None}
    return [Sent(recipient=recipient or "ann@example.org", message_id=id_) for id_, recipient in sorted(pairs, key=str)]


def send_all(db, tenant: str = "default") -> None:
    """Record the sends of all providers."""
    for provider in PROVIDERS:
        with db.engine.begin() as connection:
            recorded = record_send(connection, tenant_id=tenant, provider=provider, sent=sends_of(provider))
        broadcast(recorded)


def compute_expected_states() -> list[tuple]:
    """Return the expected state of all deliveries after all events, from the design."""
    collected = []
    for provider in PROVIDERS:
        requests = [
            event for request in requests_of(provider) for event in parse(provider, request.body, request.headers)
        ]
        for sent in sends_of(provider):
            own = [
                event
                for event in requests
                if event.message_id == sent.message_id and (event.recipient or sent.recipient) == sent.recipient
            ]
            last = max(own, key=_rank)
            earliest = [
                min((e.occurred_at.replace(tzinfo=None) for e in own if e.type == type_), default=None)
                for type_ in ("delivered", "bounced", "complained")
            ]
            terminal = any(event.type in TERMINAL for event in own)
            dispatched = last.type if last.type not in event_types.SENDER_TYPES else None
            collected.append((sent.recipient.lower(), dispatched, terminal, *earliest))
    return collected


def _rank(event) -> tuple:
    return (event.type not in event_types.SENDER_TYPES, event.occurred_at, event_types.TYPES.index(event.type))


def states(db, tenant: str = "default") -> list[tuple]:
    """Return the state of all deliveries, with our own types apart from the provider's."""
    rows = [tuple(row) for row in db.rows(STATE, tenant=tenant)]
    return [(row[0], row[1] if row[1] not in event_types.SENDER_TYPES else None, *row[2:]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["the send first", "the webhook first"])
def test_every_documented_payload_reaches_its_delivery_by_the_command(db, tmp_path, order):
    """Each is sent twice and recorded once. SIGTERM ends the process."""
    if order == "the send first":
        send_all(db)
    with receiving(db, tmp_path) as (base, process), httpx.Client(base_url=base) as client:
        for provider in PROVIDERS:
            for request in requests_of(provider) * 2:
                answer = client.post(f"/{provider}", content=request.body, headers=request.headers)
                assert (answer.status_code, answer.text) == (200, "ok\n"), (provider, process.stderr)
        assert client.get("/healthz").status_code == 200
        recorded = db.value(COUNT + " AND type <> 'reconciled'")
    if order == "the webhook first":
        send_all(db)
    assert recorded == sum(len(load_payloads(provider)) for provider in PROVIDERS)
    assert sorted(states(db), key=str) == sorted(compute_expected_states(), key=str)
    assert "Traceback" not in process.stderr


def test_an_event_is_broadcast_by_the_receiver_itself(db):
    """One message per channel is published after the response, however often the provider repeats it."""
    request = first("postmark")
    (event,) = parse("postmark", request.body, request.headers)
    with db.engine.begin() as connection:
        sent = [Sent(recipient=event.recipient, message_id=event.message_id)]
        broadcast(record_send(connection, provider="postmark", sent=sent))
    assert {answer.status_code for answer in post(mount_receiver(), "/webhooks/postmark", request, request)} == {200}
    assert [payload["event_type"] for _, payload in db.witness.messages()] == ["bounced", "bounced"]


def test_other_requests_get_a_short_response(db):
    """They have another method, an unknown provider, or one without a secret; HEAD and GET check the URL."""

    async def talk(client):
        requests = [
            ("HEAD", "mandrill"), ("GET", "unisender_go"), ("HEAD", "pigeon"), ("POST", "pigeon"), ("POST", "postmark"),
            ("PUT", "mandrill"), ("GET", "healthz"), ("GET", ""),
        ]  # fmt: skip
        return [(await client.request(method, f"/webhooks/{name}")).status_code for method, name in requests]

    assert ask(mount_receiver(secrets={"mandrill": senders.KEY}), talk) == [200, 200, 404, 404, 404, 405, 200, 404]


def test_a_length_of_thousands_of_digits_is_too_large(db):
    """Python refuses to convert it; a proxy in front may let it pass."""
    sent = []

    async def run():
        authorized = first("postmark").headers["Authorization"].encode()
        headers = [(b"authorization", authorized), (b"content-length", b"9" * 5_000)]
        scope = {"type": "http", "method": "POST", "path": "/postmark", "headers": headers, "query_string": b""}

        async def next_():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def note(message):
            sent.append(message.get("status"))

        await webhook_app(secrets=SECRETS)(scope, next_, note)

    asyncio.run(run())
    assert sent == [413, None]


def test_a_failing_tenant_function_is_one_line(db, caplog):
    """The webhook is sent again."""

    def tenant(path):
        raise LookupError("c4n4ry")

    (answer,) = post(mount_receiver(tenant=tenant), "/webhooks/postmark", first("postmark"))
    assert answer.status_code == 503
    (record,) = caplog.records
    assert "LookupError in " in record.getMessage()
    assert "c4n4ry" not in caplog.text


def test_receive_records_in_the_callers_transaction(db):
    """A rollback drops everything; a Session broadcasts by itself."""
    request = first("postmark")
    with db.engine.connect() as connection:
        (recorded,) = receive(connection, "Postmark", request.body, request.headers, secret=AUTH)
        assert recorded.event_id is not None
        connection.rollback()
    assert db.value(COUNT) == 0
    with Session(db.engine) as session, session.begin():
        (recorded,) = receive(session, "postmark", request.body, request.headers, secret=AUTH, tenant_id="acme")
    assert db.value("SELECT tenant_id FROM mailglass_events WHERE id = :id", id=recorded.event_id) == "acme"


@pytest.mark.parametrize("provider", ["mailersend", "mailgun"])
def test_receive_verifies_a_signature_of_the_body(db, provider):
    request = first(provider)
    with db.engine.begin() as connection, pytest.raises(SignatureError):
        receive(connection, provider, request.body, request.headers, secret=senders.KEY[::-1])
    assert db.value(COUNT) == 0


def test_a_subscription_of_sns_is_confirmed_once_and_only_for_the_right_topic(db, monkeypatch):
    """It takes one GET to Amazon."""
    url = "https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&Token=t"
    requests = []
    monkeypatch.setattr(
        sns,
        "fetch",
        lambda address: requests.append(address) or (b"" if address == url else senders.serve_certificate(address)),
    )
    payload = {"Type": "SubscriptionConfirmation", "Message": "m", "Token": "t", "SubscribeURL": url}
    right, wrong = notification("ses", payload), notification("ses", {**payload, "TopicArn": senders.ARN + "2"})
    assert [answer.status_code for answer in post(mount_receiver(), "/webhooks/ses", wrong, right)] == [401, 200]
    assert requests == [senders.CERTIFICATE_URL, url]


@pytest.mark.parametrize(
    ("base", "path", "address"),
    [
        ("https://a.example/webhooks", "/mandrill", "https://a.example/webhooks/mandrill"),
        ("https://a.example/webhooks/", "/acme/mandrill/", "https://a.example/webhooks/acme/mandrill"),
        ("https://a.example/mandrill", "/mandrill", "https://a.example/mandrill"),
        ("https://u:p@a.example", "mandrill", "https://u:p@a.example/mandrill"),
    ],
)
def test_the_public_url_is_the_base_and_the_path(base, path, address):
    """A base with the provider is the whole URL."""
    assert public_url(path, base) == address


def test_mandrills_url_is_that_of_the_request_unless_it_is_set(db, monkeypatch):
    """Behind a proxy, the request has another URL."""
    monkeypatch.setattr(senders, "MANDRILL_URL", "http://testserver/webhooks/mandrill")
    request = first("mandrill")
    assert [answer.status_code for answer in post(mount_receiver(url=None), "/webhooks/mandrill", request)] == [200]
    (answer,) = post(mount_receiver(url="https://other.example/webhooks"), "/webhooks/mandrill", request)
    assert answer.status_code == 401
    monkeypatch.setattr(senders, "MANDRILL_URL", "https://other.example/webhooks/mandrill")
    request = first("mandrill")
    assert (
        post(mount_receiver(url="https://other.example/webhooks"), "/webhooks/mandrill", request)[0].status_code == 200
    )


def test_receives_url_is_the_argument_or_the_setting(db):
    """Mandrill signs it."""
    request = first("mandrill")
    arguments = {"provider": "mandrill", "body": request.body, "headers": request.headers, "secret": senders.KEY}
    with db.engine.begin() as connection:
        assert receive(connection, **arguments, url=MANDRILL_URL)
        with pytest.raises(ConfigurationError, match="public URL"):
            receive(connection, **arguments)
    settings = db.settings.model_copy(update={"webhook_url": SecretStr(MANDRILL_URL.removesuffix("/mandrill/"))})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    with db.engine.begin() as connection, pytest.raises(SignatureError):
        receive(connection, **arguments)  # without the slash at the end, it is another URL
    mailglass_reconcile.configure(
        engine=db.engine, settings=db.settings.model_copy(update={"webhook_url": SecretStr(MANDRILL_URL)})
    )
    with db.engine.begin() as connection:
        assert receive(connection, **arguments)


def test_slow_recording_blocks_neither_the_event_loop_nor_more_than_eight_connections(db):
    request = first("postmark")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def talk(client):
        requests = [client.post("/webhooks/postmark", content=request.body, headers=request.headers) for _ in range(12)]
        posts = asyncio.gather(*requests)
        await asyncio.to_thread(wait_until, lambda: db.value(waiting) == app.THREADS)
        assert (await client.get("/webhooks/healthz")).status_code == 200
        assert db.value(waiting) == app.THREADS
        locking.rollback()
        return {answer.status_code for answer in await posts}

    receiver = mount_receiver()
    with db.engine.connect() as locking:
        locking.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '20s'")
        locking.exec_driver_sql("LOCK TABLE mailglass_events IN ACCESS EXCLUSIVE MODE")
        assert ask(receiver, talk) == {200}


def test_a_client_that_leaves_is_not_answered(db):
    """It causes no error."""
    sent = []

    async def run():
        headers = [(b"authorization", first("postmark").headers["Authorization"].encode())]
        scope = {"type": "http", "method": "POST", "path": "/postmark", "headers": headers, "query_string": b""}

        async def leave():
            return {"type": "http.disconnect"}

        async def note(message):
            sent.append(message)

        await webhook_app(secrets=SECRETS)(scope, leave, note)

    asyncio.run(run())
    assert sent == []


def test_it_answers_the_lifespan_of_a_server_that_serves_it_by_itself(db):
    """Uvicorn, hypercorn and others start with it."""
    incoming, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

    receiver = webhook_app(secrets=SECRETS)

    async def run():
        async def next_():
            return incoming.pop(0)

        async def note(message):
            sent.append(message["type"])

        await receiver({"type": "lifespan"}, next_, note)

    asyncio.run(run())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_more_webhooks_than_may_wait_are_answered_with_503(db, caplog):
    """A slow database must not fill the memory."""
    receiver, request = mount_receiver(), first("postmark")
    receiver.routes[0].app.admission = AdmissionControl(max_verified=2)

    async def talk(client):
        requests = [client.post("/webhooks/postmark", content=request.body, headers=request.headers) for _ in range(6)]
        return sorted(answer.status_code for answer in await asyncio.gather(*requests))

    assert ask(receiver, talk) == [200, 200, 503, 503, 503, 503]
    (record,) = caplog.records
    assert (record.levelname, "too many" in record.getMessage()) == ("WARNING", True)


def test_garbage_to_one_provider_refuses_no_batch_of_another(db):
    """Its signature is over the body, but it once waited in line with garbage and was refused first."""
    garbage = b"event=" + b"x" * app.SMALL_BYTES
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    event = load_payloads("mailtrap")[0].payload
    (batch,) = senders.make_requests(
        "mailtrap", [{**event, "event_id": f"{number}"} for number in range(200)], at=now()
    )
    assert len(batch.body) > 2 * app.SMALL_BYTES

    async def talk(client):
        strangers = [client.post("/webhooks/mandrill", content=garbage, headers=form) for _ in range(120)]
        honest = client.post("/webhooks/mailtrap", content=batch.body, headers=batch.headers)
        *answers, answer = await asyncio.gather(*strangers, honest)
        return {stranger_answer.status_code for stranger_answer in answers}, answer.status_code

    assert ask(mount_receiver(), talk) == ({401, 503}, 200)


def test_a_signature_over_the_body_is_checked_at_once(db, monkeypatch):
    """This holds up to 5 MB; Unisender Go's, which takes longer, waits above 1 MB."""
    checked = []
    run = VerificationThread.run

    def note(verifier, provider, size, *, verified, job):
        checked.append((provider, verified))
        return run(verifier, provider, size, verified=verified, job=job)

    monkeypatch.setattr(VerificationThread, "run", note)
    receiver = mount_receiver()
    megabyte = b" " * 1024 * 1024
    for provider, status in [("mailtrap", 400), ("unisender_go", 400), ("mailgun", 413)]:
        for body in (b'"auth": "AUTH"' + megabyte[:-100], b'"auth": "AUTH"' + megabyte):
            request = senders.sign_request(provider, body, at=now())
            assert post(receiver, f"/webhooks/{provider}", request)[0].status_code == status
    assert checked == [("mailtrap", True), ("mailtrap", True), ("unisender_go", True), ("unisender_go", False)]
