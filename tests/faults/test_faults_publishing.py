"""Publishing has a second per sweep in all, whatever client the application has, and sends nothing twice."""

import json
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

import mailglass_reconcile
from conftest import Database
from faults.redis_servers import slow
from faults.test_faults_connection import raced
from faults.test_faults_redis import Valkey
from mailglass_reconcile import runtime
from mailglass_reconcile.pubsub import CHUNK_LINKS, Message, Published, Publisher, events_channel
from mailglass_reconcile.testing.servers import free_port

SECOND = 1.3
"""A second, and what a busy machine adds."""


@pytest.fixture
def valkey(tmp_path) -> Iterator[Valkey]:
    """A server of the test's own."""
    made = Valkey(tmp_path / "valkey")
    yield made
    made.stop()


def messages(number: int) -> list[Message]:
    """Return as many messages, each of its own delivery."""
    return [("acme", str(uuid.uuid4()), json.dumps({"number": n})) for n in range(number)]


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


def publish(client: redis.Redis, number: int) -> tuple[Published, float]:
    """Publish as many links as one sweep, in one call, and return the outcome and the seconds that it took."""
    publisher, made = Publisher(client), messages(number)
    began = time.monotonic()
    outcome = publisher.publish(made)
    took = time.monotonic() - began
    assert sum(outcome) == 2 * number
    return outcome, took


@pytest.mark.parametrize("seconds", [0.1, 0.45])
def test_a_redis_that_answers_each_call_slowly_costs_a_second_in_all(valkey: Valkey, seconds: float) -> None:
    """Ten thousand links in twenty calls, each answered late: after a second the rest is lost, and none is doubled."""
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub, slow(valkey.url, seconds) as url:
        pubsub.psubscribe("mailglass:*")
        outcome, took = publish(redis.Redis.from_url(url), 20 * CHUNK_LINKS)
        direct.publish("mailglass:", "end")
        counts = heard(pubsub, b"end")
    assert took < SECOND
    assert outcome.published <= sum(counts.values())
    assert set(counts.values()) <= {1}


def test_a_healthy_redis_takes_a_large_sweep_whole(valkey: Valkey) -> None:
    """A hundred thousand links take longer than a second may be wasted, and none is lost."""
    with redis.Redis.from_url(valkey.url) as client:
        assert publish(client, 200 * CHUNK_LINKS)[0].failed == 0


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
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        port = silent.getsockname()[1] if state == "silent" else free_port()
        outcome, took = publish(patient_clients(port)[client], 5 * CHUNK_LINKS)
    assert outcome.published == 0
    assert took < SECOND


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
    """EVAL and PUBLISH on our channels are enough, and nothing is logged; INFO is used where it is allowed."""
    valkey.command("ACL", "SETUSER", "least", *LEAST, "+eval", "+publish", *more)
    with redis.Redis.from_url(valkey.url) as direct, direct.pubsub() as pubsub:
        pubsub.subscribe(events_channel("acme"))
        outcome, _ = publish(user(valkey, "least"), 3)
        assert outcome == Published(6, 0)
        assert [pubsub.get_message(timeout=5)["type"] for _ in range(4)] == ["subscribe"] + 3 * ["message"]
    assert caplog.records == []


def test_a_replica_is_recognised_without_the_right_to_ask(valkey: Valkey, tmp_path) -> None:
    """A user without INFO on a replica: the replica refuses a script that may write, so nothing counts as told."""
    replica = Valkey(tmp_path / "replica")
    try:
        replica.command("ACL", "SETUSER", "least", *LEAST, "+eval", "+publish")
        replica.command("REPLICAOF", "127.0.0.1", valkey.url.split(":")[2].split("/")[0])
        outcome, _ = publish(user(replica, "least"), 3)
        assert outcome == Published(0, 6)
    finally:
        replica.stop()


@pytest.mark.parametrize("allowed", [("+publish",), ("+eval",), ("+eval", "+publish", "resetchannels")])
def test_a_user_who_may_not_publish_is_told_once_what_is_missing(valkey: Valkey, caplog, allowed) -> None:
    """One warning for all calls of a sweep names the commands and the channels, and nothing of a message."""
    valkey.command("ACL", "SETUSER", "less", *LEAST, *allowed)
    outcome, _ = publish(user(valkey, "less"), 3 * CHUNK_LINKS)
    assert outcome.published == 0
    (record,) = caplog.records
    assert "EVAL and PUBLISH" in record.getMessage()
    assert "mailglass:events:*" in record.getMessage()
    assert "acme" not in record.getMessage()
