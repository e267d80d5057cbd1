"""Publishing delays a sweep by a second at most, whatever the application's client, and sends nothing twice."""

import json
import logging
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

import mailglass_reconcile
from database import Database
from factories import insert_pairs
from faults.redis_servers import Valkey, silent, slow
from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub import (
    CHUNK_LINKS,
    Message,
    Published,
    Publisher,
    create_client,
)
from mailglass_reconcile.pubsub.client import TIMEOUT_SECONDS
from mailglass_reconcile.pubsub.publisher import BACKOFF_SECONDS, MAX_WAITING_LINKS
from mailglass_reconcile.testing.servers import free_port
from marking import slow_unless
from observing import Observed
from waiting import PATIENCE, settle, wait_until

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Wait until the background thread is idle, so that each test begins with an empty queue."""
    yield
    settle()


def messages(number: int) -> list[Message]:
    """Return a number of messages, each of its own delivery."""
    deliveries = [str(uuid.uuid4()) for _ in range(number)]
    return [("acme", delivery, json.dumps({"delivery_id": delivery})) for delivery in deliveries]


def count_received(pubsub: redis.client.PubSub, until: bytes | None) -> Counter[tuple[bytes, bytes]]:
    """Return how often each message was received until *until*; None is until the first one."""
    result: Counter[tuple[bytes, bytes]] = Counter()
    while True:
        message = pubsub.get_message(timeout=PATIENCE)
        assert message is not None, "the last message did not come"
        if message["data"] == until:
            return result
        if message["type"] == "pmessage":
            result[message["channel"], message["data"]] += 1
            if until is None:
                return result


def publish(
    client: redis.Redis, number: int, *, seconds: float = TIMEOUT_SECONDS, backoff_seconds: float = BACKOFF_SECONDS
) -> Published:
    """Publish as many links as one sweep in one call, and wait for so long."""
    publisher = Publisher(client, backoff_seconds=backoff_seconds)
    publisher.publish(messages(number))
    outcome = publisher.wait(seconds)
    assert sum(outcome) == 2 * number
    return outcome


@pytest.mark.parametrize(("delay", "seconds"), slow_unless((0.1, 0.3).__eq__, [(0.1, 0.3), (0.15, TIMEOUT_SECONDS)]))
def test_messages_that_a_slow_redis_has_not_accepted_in_time_count_as_failed(
    valkey: Valkey, delay: float, seconds: float
) -> None:
    """The rest is published later, and nothing twice."""
    links = 10 * CHUNK_LINKS
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub, slow(valkey.url, delay) as url:
        pubsub.psubscribe("mailglass:*")
        publisher = Publisher(redis.Redis.from_url(url))
        publisher.publish(messages(links))
        first = count_received(pubsub, until=None)  # a busy machine connects later
        outcome = publisher.wait(seconds)
        settle()
        direct.publish("mailglass:", "end")
        counts = first + count_received(pubsub, b"end")
    assert 0 < outcome.published < 2 * links == sum(outcome)
    assert sum(counts.values()) == 2 * links
    assert set(counts.values()) == {1}


@pytest.mark.slow
def test_a_healthy_redis_accepts_a_large_sweep(valkey: Valkey, observed: Observed) -> None:
    """Thirty thousand links are published, ten thousand at a time."""
    with redis.Redis.from_url(valkey.url) as client:
        for _ in range(3):
            assert publish(client, MAX_WAITING_LINKS).published > 0
            settle()
        assert observed.counts("messages") == {"published": 6 * MAX_WAITING_LINKS}


@pytest.mark.slow
def test_a_redis_20_ms_away_accepts_the_queue_within_a_second(valkey: Valkey) -> None:
    """Twenty round trips publish all links."""
    with slow(valkey.url, 0.02) as url:
        assert publish(redis.Redis.from_url(url), MAX_WAITING_LINKS).failed == 0


def test_a_redis_that_returns_is_used_again_and_each_outage_is_logged_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """One call is let through after the back-off; no new client is needed."""
    client = redis.Redis.from_url(valkey.url)
    for outages in (1, 2):
        assert publish(client, 1, backoff_seconds=0.02).published == 2
        valkey.stop()
        assert {publish(client, 1) for _ in range(20)} == {Published(0, 2)}
        valkey.start()
        wait_until(lambda: publish(client, 1).published)
        assert len([line for line in caplog.messages if "cannot publish" in line]) == outages


@pytest.mark.parametrize(("is_expected", "level", "failed"), [(False, "INFO", 0), (True, "WARNING", 2)])
def test_an_absent_redis_that_nobody_has_configured_is_no_warning(
    is_expected: bool, level: str, failed: int, caplog: pytest.LogCaptureFixture, observed: Observed
) -> None:
    """The default address is tried because a server may be there; nothing counts as lost, and no alert is due."""
    caplog.set_level(logging.INFO)
    client = create_client(SecretStr("redis://127.0.0.1:1/0"), "MAILGLASS_REDIS_URL")
    publisher = Publisher(client, is_expected=is_expected)
    publisher.publish(messages(1))
    assert publisher.wait() == Published(0, failed)
    assert observed.counts("messages") == ({"failed": failed} if failed else {})
    assert [record.levelname for record in caplog.records if "cannot publish" in record.message] == [level]


def test_a_redis_that_nobody_has_configured_is_missed_once_it_has_replied(valkey: Valkey) -> None:
    """An application relies on the default address then."""
    publisher = Publisher(redis.Redis.from_url(valkey.url), is_expected=False)
    publisher.publish(messages(1))
    assert publisher.wait() == Published(2, 0)
    valkey.stop()
    publisher.publish(messages(1))
    assert publisher.wait() == Published(2, 2)


def test_a_slow_name_lookup_delays_nobody(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket timeout ends a lookup; after it, messages are published again."""
    resolved, look_up = threading.Event(), socket.getaddrinfo

    def slowly(*arguments: Any, **options: Any) -> Any:
        resolved.wait(PATIENCE)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    client = redis.Redis.from_url(valkey.url)
    assert publish(client, 3 * CHUNK_LINKS, seconds=0.2, backoff_seconds=0.01).published == 0
    assert not resolved.is_set()
    resolved.set()
    wait_until(lambda: publish(client, 1).published)


def create_our_client(port: int) -> redis.Redis:
    """Return a client like that of `MAILGLASS_REDIS_URL`, with half a second for each response and no retry."""
    return create_client(SecretStr(f"redis://127.0.0.1:{port}/0"), "MAILGLASS_REDIS_URL")


def test_a_redis_that_never_answers_is_asked_once_and_the_queue_is_dropped() -> None:
    """It takes half a second, however long the queue."""
    with silent() as (port, accepted):
        assert publish(create_our_client(port), 50 * CHUNK_LINKS).published == 0
        settle()
        assert len(accepted) == 1


def test_a_redis_that_never_answers_is_asked_by_one_of_a_hundred_calls() -> None:
    """A process backs off for seconds, whichever publisher asks."""
    with silent() as (port, accepted):
        client, started_at = create_our_client(port), time.monotonic()
        assert [publish(client, 1) for _ in range(100)] == 100 * [Published(0, 2)]
        assert 1 <= len(accepted) <= 1 + (time.monotonic() - started_at) / BACKOFF_SECONDS


@pytest.mark.parametrize("state", slow_unless("silent".__eq__, ["closed", "silent"]))
def test_a_client_with_long_timeouts_costs_a_sweep_a_second_in_all(state: str) -> None:
    """An application's client may have long timeouts and retries: the thread waits for it, the sweep does not."""
    with silent() as (open_port, accepted):
        port = open_port if state == "silent" else free_port()
        client = redis.Redis(port=port, socket_timeout=30, retry=Retry(ConstantBackoff(0.7), 3))
        assert publish(client, 20 * CHUNK_LINKS) == Published(0, 40 * CHUNK_LINKS)
        assert Publisher(client).server.is_backing_off
        started_at = time.monotonic()
        assert [publish(client, 1, seconds=60).published for _ in range(20)] == [0] * 20, "none waits at all"
        assert time.monotonic() - started_at < 30, "the server is left alone"
        assert len(accepted) <= 1


def test_publishers_of_a_process_share_one_thread_and_one_connection(valkey: Valkey) -> None:
    """Many threads publish at once, and each message is sent once."""
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:*")
        client, before = redis.Redis.from_url(valkey.url), set(threading.enumerate())
        publish(client, 1)
        connections = direct.info("stats")["total_connections_received"]
        with ThreadPoolExecutor(24) as threads:
            list(threads.map(partial(publish, client), 100 * [1, 2, 3]))
        assert [item.name for item in set(threading.enumerate()) - before] in ([], ["mailglass after commit"])
        settle()
        assert direct.info("stats")["total_connections_received"] == connections
        direct.publish("mailglass:", "end")
        counts = count_received(pubsub, b"end")
    assert set(counts.values()) == {1}
    assert sum(counts.values()) == 1202


@contextmanager
def message_counter(valkey: Valkey) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of messages until then."""
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:*")

        def count() -> int:
            direct.publish("mailglass:", "end")
            return sum(count_received(pubsub, b"end").values())

        yield count


def test_what_is_enqueued_is_published_in_order_and_counted(valkey: Valkey, observed: Observed) -> None:
    """They are published in order, after the call has returned."""
    client = redis.Redis.from_url(valkey.url)
    with message_counter(valkey) as count:
        for _ in range(3):
            Publisher(client).publish(messages(2 * CHUNK_LINKS))
        assert publish(client, 1).published == 2
        assert count() == 12 * CHUNK_LINKS + 2
    wait_until(lambda: observed.counts("messages") == {"published": 12 * CHUNK_LINKS + 2})


def test_a_message_arrives_as_it_was_given_on_both_channels(valkey: Valkey) -> None:
    """Lengths are in bytes, not characters, and a line break within ends no command."""
    text, delivery = '{"é": "€\r\n*1\r\n"}', str(uuid.uuid4())
    with redis.Redis.from_url(valkey.url) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:*")
        publisher = Publisher(client)
        publisher.publish([("é~", delivery, text)])
        assert publisher.wait() == Published(2, 0)
        client.publish("mailglass:", "end")
        channel = b"mailglass:events:%C3%A9%7E"
        assert count_received(pubsub, b"end") == {
            (channel, text.encode()): 1,
            (channel + b":" + delivery.encode(), text.encode()): 1,
        }


def test_messages_of_several_callers_are_sent_together(valkey: Valkey) -> None:
    """Redis is a tenth of a second away: twenty round trips would take two seconds, and an ending process waits one."""
    with redis.Redis.from_url(valkey.url) as direct, message_counter(valkey) as count, slow(valkey.url, 0.1) as url:
        client = redis.Redis.from_url(url)
        before = direct.info("stats")["total_reads_processed"]
        for _ in range(20):
            Publisher(client).publish(messages(1))
        settle()
        assert direct.info("stats")["total_reads_processed"] - before < 20
        assert count() == 40


def test_publish_waits_for_nothing_and_drops_what_does_not_fit(observed: Observed) -> None:
    """Redis never answers: callers go on at once, and every message is counted in the end."""
    with silent() as (port, accepted):
        client = create_our_client(port)
        for _ in range(3):
            Publisher(client).publish(messages(MAX_WAITING_LINKS // 2))
        assert observed.counts("messages")["failed"] >= MAX_WAITING_LINKS - 2 * CHUNK_LINKS
        wait_until(lambda: observed.counts("messages") == {"failed": 3 * MAX_WAITING_LINKS})
        assert len(accepted) == 1


def test_a_client_that_retries_sends_nothing_twice(db: Database, valkey: Valkey) -> None:
    """Redis executes the command and closes the connection; redis-py alone would send it three more times."""
    insert_pairs(db, 3)
    with (
        redis.Redis.from_url(valkey.url) as direct,
        direct.pubsub() as pubsub,
        slow(valkey.url, 0, drops=b"PUBLISH") as url,
    ):
        pubsub.psubscribe("mailglass:*")
        settings = db.settings.model_copy(update={"batch_size": 1})
        timeouts = {"socket_timeout": 5, "socket_connect_timeout": 5}
        # By default it waits a little between attempts.
        client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 3), **timeouts)
        mailglass_reconcile.configure(engine=db.engine, redis=client, settings=settings)
        result = mailglass_reconcile.reconcile()
        direct.publish("mailglass:", "end")
        counts = count_received(pubsub, b"end")
    assert (result.linked, result.published, result.publish_failed) == (3, 0, 6)
    assert set(counts.values()) == {1}


def user(valkey: Valkey, name: str) -> redis.Redis:
    """Return a client that logs in as a user of the server."""
    return redis.Redis.from_url(valkey.url.replace("://", f"://{name}:pw@"))


LEAST = ("on", ">pw", "resetkeys", "resetchannels", "&mailglass:events:*", "nocommands")


@pytest.mark.parametrize("right", [("+publish",), ("+publish", "resetchannels"), ()])
def test_a_user_without_permission_to_publish_is_warned_of_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, right: tuple[str, ...]
) -> None:
    """One warning for all calls of a sweep has command and channels, and nothing of a message."""
    valkey.command("ACL", "SETUSER", "least", *LEAST, *right)
    enough = right == ("+publish",)
    links = 3 * CHUNK_LINKS
    outcome = publish(user(valkey, "least"), links, seconds=30)  # the server of a busy machine is late
    assert outcome == (Published(2 * links, 0) if enough else Published(0, 2 * links))
    assert len(caplog.records) == (not enough)
    for record in caplog.records:
        assert "PUBLISH on the channels mailglass:events:*" in record.getMessage()
        assert "acme" not in record.getMessage()


def test_the_late_replies_to_a_batch_are_not_taken_for_those_to_the_next(valkey: Valkey) -> None:
    """The first one is accepted after the client's timeout, the next one is refused, on the pool's only connection."""
    valkey.command("ACL", "SETUSER", "least", *LEAST, "+publish")
    options = {"socket_timeout": 0.2, "socket_connect_timeout": 5, "max_connections": 1}
    client = redis.Redis.from_url(valkey.url.replace("://", "://least:pw@"), retry=Retry(NoBackoff(), 0), **options)
    assert publish(client, 1, backoff_seconds=0.01) == Published(2, 0)
    valkey.command("CLIENT", "PAUSE", "600", "ALL")
    assert publish(client, 1) == Published(0, 2)
    valkey.command("ACL", "SETUSER", "least", "-publish")  # after the pause
    wait_until(lambda: not Publisher(client).server.is_backing_off)
    assert publish(client, 1) == Published(0, 2)


def test_each_call_counts_its_own_messages_of_a_batch_that_redis_accepts_in_part(valkey: Valkey) -> None:
    """Both calls are sent together, while Redis pauses the one before them; one tenant's channels are refused."""
    valkey.command("ACL", "SETUSER", "half", *LEAST, "resetchannels", "&mailglass:events:acme*", "+publish")
    client = user(valkey, "half")
    assert publish(client, 1) == Published(2, 0)
    before, accepted, refused = (Publisher(client) for _ in range(3))
    valkey.command("CLIENT", "PAUSE", "300", "ALL")
    before.publish(messages(1))
    accepted.publish(messages(1))
    refused.publish([("other", delivery, text) for _, delivery, text in messages(1)])
    settle()
    assert (accepted.wait(), refused.wait()) == (Published(2, 0), Published(0, 2))


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (lambda: redis.Redis(socket_timeout=None, socket_connect_timeout=1), "socket_timeout and"),
        (lambda: redis.Redis(unix_socket_path="/nowhere", socket_timeout=None), "socket_timeout and"),
        (lambda: Sentinel([("nowhere", 1)]).master_for("m", socket_timeout=None), "socket_timeout and"),
        (
            lambda: Sentinel([("nowhere", 1)], sentinel_kwargs={"socket_timeout": None}).master_for(
                "m", socket_timeout=1
            ),
            "socket_timeout and",
        ),
        (object, "not a object"),
    ],
)
def test_a_client_without_timeouts_is_refused(client: Callable[[], Any], words: str) -> None:
    """The error comes at configuration, in one line that names the options, and not during an outage."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        mailglass_reconcile.configure(redis=client())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "client",
    [
        lambda: redis.Redis(socket_timeout=1, socket_connect_timeout=1),
        lambda: redis.Redis.from_url("rediss://nowhere/0?socket_timeout=1&socket_connect_timeout=1"),
        lambda: redis.Redis(unix_socket_path="/nowhere", socket_timeout=1),
        lambda: redis.Redis(connection_pool=redis.BlockingConnectionPool(socket_timeout=1, timeout=1)),
        lambda: Sentinel([("nowhere", 1)], socket_timeout=1).master_for("m", socket_timeout=1),
    ],
)
def test_a_client_with_timeouts_is_used_as_it_is(client: Callable[[], redis.Redis]) -> None:
    """The client may be of any kind, with any pool."""
    configured = client()
    mailglass_reconcile.configure(redis=configured)
    assert runtime.get_redis() is configured
    mailglass_reconcile.configure()
