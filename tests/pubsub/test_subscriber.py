"""`subscribe()`: what an application receives, and when it learns that it may have missed something."""

import datetime as dt
import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import redis

import factories
import mailglass_reconcile
from faults.redis_servers import Valkey
from mailglass_reconcile import Missed, Update, events_channel
from mailglass_reconcile.pubsub import Subscription
from waiting import PATIENCE, wait_until

DELIVERY = "0a1b2c3d-0000-4000-8000-00000000000a"


def publish_update(client: redis.Redis, tenant: str, delivery: str, number: int) -> None:
    """Publish one update like a sweep, on the tenant's channel and on the delivery's."""
    message = json.dumps({"event": "delivery_updated", "delivery_id": delivery, "number": number})
    client.publish(events_channel(tenant), message)
    client.publish(events_channel(tenant, delivery), message)


@pytest.mark.parametrize(
    ("tenant", "delivery", "heard"),
    [
        (None, None, [0, 1, 2, 3]),
        ("acme", None, [0, 1]),
        ("a/c:*", None, [2]),
        ("acme", DELIVERY.upper(), [0]),
        (None, uuid.UUID(DELIVERY), [0, 3]),
    ],
)
@pytest.mark.parametrize("client", [{}, {"decode_responses": True}, {"protocol": 3}])
def test_each_event_is_received_once_by_its_subscribers(redis_url, tenant, delivery, heard, client):
    """Subscriptions are for one or all tenants and deliveries, with any client; a tenant's name is no pattern."""
    with (
        redis.Redis.from_url(redis_url) as publisher,
        redis.Redis.from_url(redis_url, **client) as client_of_subscriber,
        Subscription(client_of_subscriber, tenant, delivery) as subscription,
    ):
        other_delivery = str(uuid.uuid4())
        for number, tenant_and_delivery in enumerate(
            [("acme", DELIVERY), ("acme", other_delivery), ("a/c:*", other_delivery), ("b", DELIVERY)]
        ):
            publish_update(publisher, *tenant_and_delivery, number)
        result = [next(subscription) for _ in heard]
    assert [item.message["number"] for item in result] == heard
    assert all(isinstance(item, Update) and item.channel.startswith("mailglass:events:") for item in result)


def test_a_sweep_is_received_with_the_configured_redis(db):
    delivery = factories.delivery(db, "one")
    orphan = factories.orphan(db, factories.postmark("one"))
    with mailglass_reconcile.subscribe() as subscription:
        mailglass_reconcile.reconcile()
        update = next(subscription)
    assert update.channel == events_channel(factories.TENANT)
    assert update.message["delivery_id"] == delivery
    assert update.message["meta"]["reconciled_from_event_id"] == orphan


def test_foreign_messages_on_our_channels_are_skipped(redis_url):
    """They are no JSON, no object, have invalid numbers, endless nesting, or ids that are no strings."""
    no_ids = (b"{}", b'{"delivery_id": [1]}', b'{"delivery_id": "x", "meta": 1}')
    wrong_ids = (b'{"delivery_id": "x", "meta": {"event_id": 7}}', b'{"delivery_id": "x", "meta": {"tenant_id": {}}}')
    with redis.Redis.from_url(redis_url) as client, Subscription(client, None, None) as subscription:
        for nonsense in (
            b"\xff\xfe",
            b"",
            b"{",
            b"[1]",
            b'"x"',
            b"NaN",
            b'{"a": NaN}',
            b"[" * 200_000,
            *no_ids,
            *wrong_ids,
        ):
            client.publish("mailglass:events:acme", nonsense)
        publish_update(client, "acme", DELIVERY, 7)
        assert next(subscription).message["number"] == 7


def test_a_redis_that_restarts_yields_missed_and_then_updates(valkey, caplog):
    """`Missed` comes once the new subscription is confirmed: what is published after it is received."""
    with redis.Redis.from_url(valkey.url) as client, Subscription(client, "acme", None) as subscription:
        publish_update(client, "acme", DELIVERY, 1)
        assert next(subscription).message["number"] == 1
        valkey.stop()
        valkey.start()
        missed = next(subscription)
        assert isinstance(missed, Missed)
        assert missed.since < missed.until
        client.close()  # its connection was to the server that was killed
        publish_update(client, "acme", DELIVERY, 2)
        assert next(subscription).message["number"] == 2
    assert len([line for line in caplog.messages if "broadcasts are missed until it is back" in line]) == 1


def test_a_connection_that_the_server_closes_yields_missed_even_if_it_reconnects_at_once(valkey):
    """A slow reader's buffer may overflow; redis-py reconnects by itself without notice."""
    with redis.Redis.from_url(valkey.url) as client, Subscription(client, None, None) as subscription:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        publish_update(client, "acme", DELIVERY, 1)
        assert isinstance(next(subscription), Missed)
        publish_update(client, "acme", DELIVERY, 2)
        assert next(subscription).message["number"] == 2


def test_a_connection_that_is_half_open_is_noticed(valkey, caplog):
    """The server's machine hangs without closing anything, which looks like silence."""
    with (
        redis.Redis.from_url(valkey.url) as client,
        Subscription(client, None, None, ping_seconds=0.1, answer_seconds=0.5) as subscription,
    ):
        pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            try:
                wait_until(lambda: "broadcasts are missed until it is back" in caplog.text)
            except AssertionError:  # the test ends by it
                os.kill(pid, signal.SIGCONT)
                publish_update(client, "acme", DELIVERY, 0)
            else:
                os.kill(pid, signal.SIGCONT)

        helper = threading.Thread(target=go_on)
        helper.start()
        missed = next(subscription)
        helper.join()
        assert isinstance(missed, Missed)
        assert missed.until - missed.since > dt.timedelta(seconds=0.5)
        assert "broadcasts are missed until it is back" in caplog.text
        publish_update(client, "acme", DELIVERY, 2)
        assert next(subscription).message["number"] == 2


def test_a_quiet_connection_is_pinged_and_stays(redis_url):
    """Silence is no loss if the server answers, and nothing is logged."""
    with (
        redis.Redis.from_url(redis_url) as client,
        Subscription(client, None, None, ping_seconds=0.05) as subscription,
    ):
        before = subscription._updates._last_received
        wait_until(lambda: subscription._run(subscription._updates._receive())["type"] == "pong")
        assert subscription._updates._last_received > before
        publish_update(client, "acme", DELIVERY, 1)
        assert next(subscription).message["number"] == 1


def test_a_subscription_that_is_closed_ends_and_leaves_no_connection(valkey):
    """`close()` or the end of the block may come while messages wait."""
    with redis.Redis.from_url(valkey.url) as client:
        with Subscription(client, None, None) as subscription:
            assert client.pubsub_numpat() == 1
            publish_update(client, "acme", DELIVERY, 1)
            for _ in subscription:
                subscription.close()
        wait_until(lambda: client.pubsub_numpat() == 0)
        assert list(subscription) == []


@contextmanager
def waiting(valkey: Valkey, caplog: pytest.LogCaptureFixture, state: str) -> Iterator[None]:
    """Run a block while a subscription waits beside a Redis that is quiet, down, or hangs."""
    with redis.Redis.from_url(valkey.url) as client:
        process = psutil.Process(client.info("server")["process_id"])
    if state == "down":
        valkey.stop()
    elif state == "hangs":
        process.suspend()
    if state != "quiet":
        wait_until(lambda: "broadcasts are missed until it is back" in caplog.text)
    try:
        yield
    finally:
        if state == "hangs":
            process.resume()


STATES = ("quiet", "down", "hangs")


@pytest.mark.parametrize("state", STATES)
def test_another_thread_may_close_a_subscription_at_any_time(valkey, caplog, state):
    """The iterating thread ends and closes the connection."""
    client = redis.Redis.from_url(valkey.url)
    subscription = Subscription(client, None, None, ping_seconds=0.1, answer_seconds=0.5)
    items = []
    thread = threading.Thread(target=lambda: items.extend(subscription))
    thread.start()
    with waiting(valkey, caplog, state):
        subscription.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert items == []
    if state != "down":
        with redis.Redis.from_url(valkey.url) as client:
            wait_until(lambda: client.pubsub_numpat() == 0)


@pytest.mark.parametrize("state", STATES)
def test_a_signal_handler_may_close_a_subscription_at_any_time(valkey, caplog, state):
    """It runs in the iterating thread, between any two steps."""
    client = redis.Redis.from_url(valkey.url)
    subscription = Subscription(client, None, None, ping_seconds=0.1, answer_seconds=0.5)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: subscription.close())

    def interrupt() -> None:
        with waiting(valkey, caplog, state):
            os.kill(os.getpid(), signal.SIGUSR1)
            has_ended.wait(PATIENCE)

    has_ended = threading.Event()
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        assert list(subscription) == []
        has_ended.set()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_the_documented_acl_is_enough_and_a_missing_permission_is_named(valkey):
    """One line has host, port and setting, and no password."""
    user = ["on", ">canary", "resetkeys", "resetchannels", "nocommands", "&mailglass:events:*"]
    valkey.command("ACL", "SETUSER", "ears", *user, "+subscribe", "+psubscribe", "+ping")
    valkey.command("ACL", "SETUSER", "deaf", *user, "+ping")
    url = "redis://{}:{}@" + valkey.url.removeprefix("redis://").rpartition("@")[2]
    for ears in (("acme", None), (None, None), (None, DELIVERY)):
        client = redis.Redis.from_url(url.format("ears", "canary"))
        with client, Subscription(client, *ears, ping_seconds=0.05) as subscription:
            assert subscription._run(subscription._updates._receive())["type"] == "pong"
    for name, password, words in (("deaf", "canary", "needs the commands SUBSCRIBE"), ("ears", "no", "password")):
        client = redis.Redis.from_url(url.format(name, password))
        with client, pytest.raises(mailglass_reconcile.RedisUnavailableError) as caught:
            Subscription(client, None, None)
        output = str(caught.value)
        assert words in output
        assert "MAILGLASS_REDIS_URL" in output
        assert "127.0.0.1, port" in output
        assert "canary" not in output
