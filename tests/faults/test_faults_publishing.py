"""Publishing has a second per sweep in all, whatever client the application has, and sends nothing twice."""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
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
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

import mailglass_reconcile
from conftest import Database, wait_until
from faults.redis_servers import silent, slow
from faults.test_faults_connection import raced
from faults.test_faults_redis import Valkey
from mailglass_reconcile import runtime
from mailglass_reconcile.pubsub import (
    CHUNK_LINKS,
    TIMEOUT_SECONDS,
    Message,
    Published,
    Publisher,
    breaker,
    events_channel,
    fail_fast_client,
)
from mailglass_reconcile.pubsub import publisher as publisher_module
from mailglass_reconcile.pubsub.publisher import MOST_WAITING
from mailglass_reconcile.testing.servers import free_port
from observing import Observed


@pytest.fixture
def valkey(tmp_path) -> Iterator[Valkey]:
    """A server of the test's own."""
    made = Valkey(tmp_path / "valkey")
    yield made
    made.stop()


def messages(number: int) -> list[Message]:
    """Return as many messages, each of its own delivery."""
    deliveries = [str(uuid.uuid4()) for _ in range(number)]
    return [("acme", delivery, json.dumps({"delivery_id": delivery})) for delivery in deliveries]


def heard(pubsub: redis.client.PubSub, until: bytes) -> Counter[tuple[bytes, bytes]]:
    """Return how often each message came, up to the one that says *until*."""
    found: Counter[tuple[bytes, bytes]] = Counter()
    while True:
        message = pubsub.get_message(timeout=5)
        assert message is not None, "the last message did not come"
        if message["data"] == until:
            return found
        if message["type"] == "pmessage":
            found[message["channel"], message["data"]] += 1


def publish(client: redis.Redis, number: int) -> Published:
    """Publish as many links as one sweep, in one call."""
    outcome = Publisher(client).publish(messages(number))
    assert sum(outcome) == 2 * number
    return outcome


@pytest.mark.parametrize(("swept_for", "enough"), [(0, False), (100, True)])
def test_a_slow_redis_may_take_a_tenth_of_a_sweeps_time(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, swept_for: float, enough: bool
) -> None:
    """Each answer is 0.1 s too late: that costs a new sweep a second, and one of 100 s up to ten; none is doubled."""
    links = 10 * CHUNK_LINKS
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub, slow(valkey.url, 0.15) as url:
        pubsub.psubscribe("mailglass:*")
        publisher = Publisher(redis.Redis.from_url(url))
        publisher._began -= swept_for
        outcome = publisher.publish(messages(links))
        direct.publish("mailglass:", "end")
        counts = heard(pubsub, b"end")
    assert outcome.published == sum(counts.values())
    assert set(counts.values()) == {1}
    assert (outcome.failed == 0) == enough
    assert len([line for line in caplog.messages if "answers too slowly" in line]) == (not enough)


def test_a_healthy_redis_takes_a_large_sweep_whole(valkey: Valkey) -> None:
    """A hundred thousand links, and none is lost: what is answered costs nothing of the second."""
    with redis.Redis.from_url(valkey.url) as client:
        assert publish(client, 200 * CHUNK_LINKS).failed == 0


@pytest.mark.slow
def test_a_redis_at_a_distance_of_20_ms_takes_a_large_sweep_whole(valkey: Valkey) -> None:
    """Two hundred calls take more than four seconds then, and none of their links is lost."""
    with slow(valkey.url, 0.02) as url:
        assert publish(redis.Redis.from_url(url), 200 * CHUNK_LINKS).failed == 0


def test_a_redis_that_never_answers_is_asked_twice_by_a_sweep_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs half a second, however long the sweep goes on: a second in all."""
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 0.0)
    with silent() as (port, accepted):
        assert publish(redis.Redis(port=port), 50 * CHUNK_LINKS).published == 0
        assert len(accepted) == 2


def test_a_redis_that_never_answers_is_asked_by_one_of_a_hundred_calls() -> None:
    """A process that has met one leaves it alone for seconds, whichever publisher asks."""
    with silent() as (port, accepted):
        client, began = redis.Redis(port=port), time.monotonic()
        assert [publish(client, 1) for _ in range(100)] == 100 * [Published(0, 2)]
        assert 1 <= len(accepted) <= 1 + (time.monotonic() - began) / breaker.PAUSE_SECONDS


def test_a_connection_that_is_refused_is_tried_again_after_longer_and_longer_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failure that costs nothing may be a restart, so the first pauses are short; the eighth attempt is 5 s later."""
    monkeypatch.setattr(breaker, "QUICK_SECONDS", TIMEOUT_SECONDS)  # a busy machine needs more than 0.1 s at times
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hung_up = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    hung_up.append(listener.accept()[0].close())

        threading.Thread(target=hang_up, daemon=True).start()
        began = time.monotonic()
        client = redis.Redis(port=listener.getsockname()[1])
        assert {publish(client, 1) for _ in range(100)} == {Published(0, 2)}
        listener.shutdown(socket.SHUT_RDWR)
    assert 2 <= len(hung_up) <= 7 + (time.monotonic() - began) / breaker.PAUSE_SECONDS


def test_a_redis_that_comes_back_is_found_again_and_each_outage_is_logged_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one call that is let through after the pause, without a new client."""
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 0.02)
    client = redis.Redis.from_url(valkey.url)
    for outages in (1, 2):
        assert publish(client, 1).published == 2
        valkey.stop()
        assert {publish(client, 1) for _ in range(20)} == {Published(0, 2)}
        valkey.start()
        wait_until(lambda: publish(client, 1).published)
        assert len([line for line in caplog.messages if "cannot publish" in line]) == outages


def publishing_threads() -> int:
    """Return how many threads of this process publish."""
    gc.collect()
    return len([thread for thread in threading.enumerate() if thread.name == "mailglass publisher"])


def test_publishers_of_a_process_share_one_thread_and_one_connection(valkey: Valkey) -> None:
    """Many threads publish at the same time; each message is sent once, and the thread ends with the client."""
    wait_until(lambda: publishing_threads() == 0)
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:*")
        client = redis.Redis.from_url(valkey.url)
        publish(client, 1)
        connections = direct.info("stats")["total_connections_received"]
        with ThreadPoolExecutor(24) as threads:
            outcomes = list(threads.map(partial(publish, client), 100 * [1, 2, 3]))
        assert publishing_threads() == 1
        assert direct.info("stats")["total_connections_received"] == connections
        assert direct.info("commandstats")["cmdstat_eval"]["calls"] <= 301
        direct.publish("mailglass:", "end")
        assert set(heard(pubsub, b"end").values()) == {1}
    assert sum(outcome.published for outcome in outcomes) == 1200
    del client
    wait_until(lambda: publishing_threads() == 0)


def test_a_name_that_is_looked_up_for_long_holds_up_nobody(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of a socket ends a look-up; when it has ended, messages are published again."""
    monkeypatch.setattr(publisher_module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 0.01)
    answered, look_up = threading.Event(), socket.getaddrinfo

    def slowly(*arguments: Any, **options: Any) -> Any:
        answered.wait(30)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    client = redis.Redis.from_url(valkey.url)
    assert publish(client, 3 * CHUNK_LINKS).published == 0
    assert not answered.is_set()
    answered.set()
    wait_until(lambda: publish(client, 1).published)


@contextmanager
def subscribed(valkey: Valkey) -> Iterator[Callable[[], int]]:
    """Yield a function that counts the messages until then."""
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub:
        pubsub.psubscribe("mailglass:*")

        def count() -> int:
            direct.publish("mailglass:", "end")
            return sum(heard(pubsub, b"end").values())

        yield count


def test_what_is_published_soon_is_published_and_counted(valkey: Valkey, observed: Observed) -> None:
    """In order, after the call has returned."""
    client = redis.Redis.from_url(valkey.url)
    with subscribed(valkey) as count:
        for _ in range(3):
            Publisher(client).publish_soon(messages(2 * CHUNK_LINKS))
        assert publish(client, 1).published == 2
        assert count() == 12 * CHUNK_LINKS + 2
    wait_until(lambda: observed.counts("messages") == {"published": 12 * CHUNK_LINKS + 2})


def test_what_several_callers_publish_within_a_moment_is_one_call(valkey: Valkey, monkeypatch) -> None:
    """As the requests of a busy process do; a sweep, which waits, does not gather."""
    monkeypatch.setattr(publisher_module, "GATHER_SECONDS", 0.5)
    client = redis.Redis.from_url(valkey.url)
    with subscribed(valkey) as count:
        for _ in range(10):
            Publisher(client).publish_soon(messages(1))
        publisher_module.flush()
        assert count() == 20
    assert client.info("commandstats")["cmdstat_eval"]["calls"] == 1


def test_what_is_published_soon_waits_for_nothing_and_drops_what_does_not_fit(observed: Observed) -> None:
    """Redis never answers: the caller goes on immediately, and every message is counted in the end."""
    with silent() as (port, accepted):
        client = redis.Redis(port=port)
        for _ in range(3):
            Publisher(client).publish_soon(messages(MOST_WAITING // 2))
        assert observed.counts("messages")["failed"] >= MOST_WAITING - 2 * CHUNK_LINKS
        wait_until(lambda: observed.counts("messages") == {"failed": 3 * MOST_WAITING})
        assert len(accepted) == 1


PUBLISHES_SOON = """
import sys, redis
from mailglass_reconcile.pubsub import Publisher
client = redis.Redis.from_url(sys.argv[1])
Publisher(client).publish_soon([("acme", "delivery", "{}")])
"""


def test_what_is_published_soon_leaves_before_the_process_ends(valkey: Valkey) -> None:
    """As a script does that records one event."""
    with subscribed(valkey) as count:
        subprocess.run([sys.executable, "-c", PUBLISHES_SOON, valkey.url], check=True, timeout=60)
        assert count() == 2


def test_a_publisher_that_stops_in_the_middle_does_not_hold_up_the_applications_client(valkey: Valkey) -> None:
    """As the end of a process stops its thread, when the application's client is closed."""
    client = redis.Redis.from_url(valkey.url)
    assert client.ping()
    with fail_fast_client(client).connection_pool._lock:
        closing = threading.Thread(target=client.close, daemon=True)
        closing.start()
        closing.join(5)
        assert not closing.is_alive()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_publishes_with_a_thread_of_its_own(valkey: Valkey) -> None:
    """As a worker of Celery or gunicorn, whose parent has published before."""
    client = redis.Redis.from_url(valkey.url)
    with subscribed(valkey) as count:
        publish(client, 1)
        child = os.fork()
        if child == 0:
            os._exit(publish(client, 1).failed)
        assert os.waitpid(child, 0)[1] == 0
        assert publish(client, 1).published == 2
        assert count() == 6


def patient_clients(port: int) -> list[redis.Redis]:
    """Return clients as applications have them: by default redis-py tries again, and waits for seconds or forever."""
    return [
        redis.Redis(port=port),
        redis.Redis(port=port, socket_timeout=30, socket_connect_timeout=30, decode_responses=True),
        redis.Redis(connection_pool=redis.BlockingConnectionPool(port=port, timeout=30)),
        redis.Redis(connection_pool=type("Pool", (redis.ConnectionPool,), {})(port=port)),
        Sentinel([("127.0.0.1", port)]).master_for("mymaster"),
    ]


@pytest.mark.parametrize("client", range(5))
@pytest.mark.parametrize("state", ["closed", "silent"])
def test_an_applications_patient_client_costs_a_second_in_all(client: int, state: str) -> None:
    """Nobody listens, or nobody answers; the client's own timeouts and retries do not count."""
    with silent() as (open_port, accepted):
        port = open_port if state == "silent" else free_port()
        assert publish(patient_clients(port)[client], 5 * CHUNK_LINKS).published == 0
        assert len(accepted) <= 2


def test_a_client_that_tries_again_sends_nothing_twice(db: Database, valkey: Valkey) -> None:
    """Redis does what it is asked and hangs up without an answer: redis-py by itself would ask three times more."""
    raced(db, 3)
    with (
        redis.Redis.from_url(valkey.url) as direct,
        direct.pubsub() as pubsub,
        slow(valkey.url, 0, drops=b"EVAL") as url,
    ):
        pubsub.psubscribe("mailglass:*")
        settings = db.settings.model_copy(update={"batch_size": 1})
        client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 3))  # by default it waits a little in between
        mailglass_reconcile.configure(engine=db.engine, redis=client, settings=settings)
        result = mailglass_reconcile.reconcile()
        direct.publish("mailglass:", "end")
        counts = heard(pubsub, b"end")
    assert (result.linked, result.published, result.publish_failed) == (3, 0, 6)
    assert set(counts.values()) == {1}


def test_a_configured_client_keeps_its_own_patience(valkey: Valkey) -> None:
    """What we ask of it for ourselves does not change what the application asks of it."""
    client = redis.Redis.from_url(valkey.url, socket_timeout=30)
    mailglass_reconcile.configure(redis=client)
    Publisher(runtime.get_redis()).publish(messages(1))
    assert client.get_connection_kwargs()["socket_timeout"] == 30
    mailglass_reconcile.configure()


def user(valkey: Valkey, name: str) -> redis.Redis:
    """Return a client that logs in as one user of the server."""
    return redis.Redis.from_url(valkey.url.replace("://", f"://{name}:pw@"))


LEAST = ("on", ">pw", "resetkeys", "resetchannels", "&mailglass:events:*", "nocommands")


@pytest.mark.parametrize("more", [(), ("+info",)])
def test_a_user_who_may_only_eval_and_publish_publishes(valkey: Valkey, caplog, more: tuple[str, ...]) -> None:
    """EVAL and PUBLISH on our channels are enough, and nothing is logged; that INFO is not allowed is learned once."""
    valkey.command("ACL", "SETUSER", "least", *LEAST, "+eval", "+publish", *more)
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub:
        pubsub.subscribe(events_channel("acme"))
        client = user(valkey, "least")
        assert publish(client, 2) == Published(4, 0)
        assert publish(client, 1) == Published(2, 0)
        assert direct.info("commandstats")["cmdstat_eval"]["calls"] == (2 if more else 3)
        assert [pubsub.get_message(timeout=5)["type"] for _ in range(4)] == ["subscribe"] + 3 * ["message"]
    assert caplog.records == []


def test_a_replica_is_recognised_without_the_right_to_ask(valkey: Valkey, tmp_path) -> None:
    """A user without INFO on a replica: the replica refuses a script that may write, so nothing counts as told."""
    replica = Valkey(tmp_path / "replica")
    try:
        replica.command("ACL", "SETUSER", "least", *LEAST, "+eval", "+publish")
        replica.command("REPLICAOF", "127.0.0.1", valkey.url.split(":")[2].split("/")[0])
        assert publish(user(replica, "least"), 3) == Published(0, 6)
    finally:
        replica.stop()


@pytest.mark.parametrize("allowed", [("+publish",), ("+eval",), ("+eval", "+publish", "resetchannels")])
def test_a_user_who_may_not_publish_is_told_once_what_is_missing(valkey: Valkey, caplog, allowed) -> None:
    """One warning for all calls of a sweep names the commands and the channels, and nothing of a message."""
    valkey.command("ACL", "SETUSER", "less", *LEAST, *allowed)
    assert publish(user(valkey, "less"), 3 * CHUNK_LINKS).published == 0
    (record,) = caplog.records
    assert "EVAL and PUBLISH" in record.getMessage()
    assert "mailglass:events:*" in record.getMessage()
    assert "acme" not in record.getMessage()
