"""Broadcasts, lock and results on Redis as operators run it: with TLS and a CA of its own, and with Sentinel."""

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from celery import Celery
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

import factories
import mailglass_reconcile
import pages
import processes
from database import Database
from faults.redis_servers import PASSWORD, Deployment, certificates, local, needs_debians_redis, sentinel, server
from installation import Site
from mailglass_reconcile import runtime, tasks
from mailglass_reconcile.pubsub import (
    AsyncSubscription,
    Missed,
    Published,
    Publisher,
    Subscription,
    Update,
    create_client,
    events_channel,
)
from mailglass_reconcile.singleton.lock import PREFIX, LockBackend, running_token
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, needs_debians_redis, pytest.mark.slow, pytest.mark.python_dependent]

KEY = f"{PREFIX}test"
QUICK = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "retry": Retry(NoBackoff(), 0)}
MESSAGES = [("acme", "delivery", '{"delivery_id": "d"}')]


def publish_link(client: redis.Redis) -> Published:
    """Publish one link, as a sweep does."""
    publisher = Publisher(client)
    publisher.publish(MESSAGES)
    return publisher.wait()


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a certificate authority and a server's certificate, and return their folder."""
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def over_tls(certified: Path) -> Iterator[str]:
    """The `rediss://` URL of a server that speaks TLS only, with its CA."""
    with server("redis-server", tls=certified) as port:
        yield f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={certified}/ca.crt"


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """A master, a replica and a Sentinel."""
    with sentinel() as servers:
        yield servers


def test_a_worker_over_tls_has_its_broker_its_lock_its_results_and_its_broadcasts(db, over_tls, tmp_path) -> None:
    """One URL configures the bundled app; the sweep's result comes back, and a subscriber gets its message."""
    site = Site(db, over_tls, tmp_path / "log")
    site.add(1)
    pubsub = site.redis.pubsub()
    pubsub.subscribe(events_channel(factories.TENANT))
    with site.worker(pool="solo"):
        holder = site.call()
        assert site.result(holder)["published"] == 2
        site.redis.set(key := tasks_key(site), "running somebody", ex=60)
        assert site.result(site.call()) == {"status": "duplicate", "of": "somebody"}
        assert site.redis.exists(key)
    wait_until(lambda: (pubsub.get_message(timeout=1) or {}).get("type") == "message")
    assert site.count_in_log("lock cannot be used") == site.count_in_log("cannot publish") == 0
    site.close()


def test_the_documented_user_of_a_broker_may_do_all_that_worker_beat_and_doctor_do(db, tmp_path) -> None:
    """The server's log of refusals stays empty, and the user may neither read other keys nor change the server."""
    (line,) = re.findall(
        r"ACL SETUSER mailglass (on >password .*)", (pages.ROOT / "docs" / "kubernetes.md").read_text()
    )
    with server("redis-server") as port:
        admin = local(port)
        admin.acl_setuser("mailglass", enabled=True, passwords="+password", commands=["+select", "+flushdb"])
        url = f"redis://mailglass:password@127.0.0.1:{port}/0"
        site = Site(db, url, tmp_path / "log")  # it empties its database
        admin.execute_command("ACL", "SETUSER", "mailglass", "reset", *line.split())
        admin.acl_log_reset()
        pubsub = site.redis.pubsub()
        pubsub.subscribe(events_channel(factories.TENANT))
        beat = ("--pidfile", "", "--scheduler", "celery.beat.Scheduler", "-l", "debug")
        with site.worker(), site.celery("beat", *beat, until="sent. id->"):
            site.add(1)
            assert "status" in site.result(site.call())  # beat's sweep may link it, or hold the lock
            wait_until(lambda: (pubsub.get_message(timeout=1) or {}).get("type") == "message")
            assert "0 errors, 0 warnings" in site.run_python(*processes.COMMAND, "doctor")
        site.close()
        assert admin.acl_log() == []
        with redis.Redis.from_url(url) as client:
            for command in ("GET other", "FLUSHALL", "CONFIG GET *", "KEYS *"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command.split())


def tasks_key(site: Site) -> str:
    """Return the key of the lock of a sweep of all tenants."""
    settings = site.db.settings.model_copy(update={"redis_url": SecretStr(site.url)})
    mailglass_reconcile.configure(engine=site.db.engine, settings=settings)
    app = Celery("adopter", broker="memory://", set_as_current=False)
    return app.tasks[tasks.SWEEP_TASK].generate_lock("")


def test_a_certificate_of_an_unknown_authority_is_refused(over_tls: str, caplog) -> None:
    """Without the CA nothing is sent, and the sweep logs the kind of error."""
    client = create_client(SecretStr(over_tls.partition("?")[0]), "MAILGLASS_REDIS_URL")
    assert publish_link(client) == Published(0, 2)
    assert PASSWORD not in caplog.text


def master_for(deployment: Deployment) -> redis.Redis:
    """Return the client that an application gets from Sentinel."""
    sentinels = Sentinel([("127.0.0.1", deployment.sentinel)], sentinel_kwargs={"password": PASSWORD, **QUICK})
    return sentinels.master_for("mymaster", password=PASSWORD, **QUICK)


def test_servers_of_the_tests_require_a_password(deployment: Deployment) -> None:
    """Anybody who may command a Sentinel can make it run scripts and write files."""
    for port in deployment:
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_broadcasts_and_lock_find_the_master_by_sentinel(db: Database, deployment: Deployment) -> None:
    mailglass_reconcile.configure(engine=db.engine, redis=master_for(deployment), settings=db.settings)
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    with local(deployment.master) as master, master.pubsub() as pubsub:
        pubsub.subscribe(events_channel(factories.TENANT))
        assert mailglass_reconcile.reconcile().published == 2
        wait_until(lambda: (pubsub.get_message(timeout=1) or {}).get("type") == "message")
        lock = LockBackend(runtime.get_redis())
        assert [lock.acquire(KEY, running_token(token)) for token in "ab"] == [None, "a"]
        assert master.get(KEY).startswith(b"running a ")


def test_a_silent_sentinel_costs_a_second() -> None:
    """It accepts the connection and never answers; both give up after their timeout."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        client = Sentinel([("127.0.0.1", silent.getsockname()[1])], sentinel_kwargs=QUICK).master_for(
            "mymaster", **QUICK
        )
        assert publish_link(client) == Published(0, 2)
        assert LockBackend(client).acquire(KEY, running_token("a")) is None


def test_after_a_fail_over_broadcasts_lock_and_subscriptions_are_on_the_new_master() -> None:
    """The master stops answering, and Sentinel promotes its replica.

    What is lost meanwhile is counted, and `Missed` for both kinds of subscription, whose PING notices the silence.
    """
    update = Update("mailglass:events:acme", {"delivery_id": "d"})
    received: list[Update | Missed] = []
    is_subscribed = threading.Event()

    async def follow(client: redis.Redis) -> None:
        async with AsyncSubscription(client, "acme", None, ping_seconds=1, answer_seconds=1) as updates:
            is_subscribed.set()
            while len(received) < 3:
                received.append(await anext(updates))

    with sentinel() as deployment, ThreadPoolExecutor(1) as thread:
        client = master_for(deployment)
        following = thread.submit(asyncio.run, follow(master_for(deployment)))
        assert is_subscribed.wait(PATIENCE)
        with Subscription(client, "acme", None, ping_seconds=1, answer_seconds=1) as subscription:
            assert publish_link(client) == Published(2, 0)
            assert next(subscription) == update
            with local(deployment.master) as master:
                master.client_pause(60_000)
            assert publish_link(client) == Published(0, 2)
            assert isinstance(next(subscription), Missed)
            wait_until(lambda: len(received) == 2, PATIENCE)
            wait_until(lambda: publish_link(client) == Published(2, 0), PATIENCE)
            assert next(subscription) == update
        following.result(PATIENCE)
        assert [type(item) for item in received] == [Update, Missed, Update]
        assert received[-1] == update
        with local(deployment.replica) as replica:
            assert replica.info("replication")["role"] == "master"
            assert LockBackend(client).acquire(KEY, running_token("a")) is None
            assert replica.get(KEY).startswith(b"running a ")


def test_a_subscription_over_tls_receives(over_tls: str) -> None:
    """The URL has the CA."""
    client = create_client(SecretStr(over_tls), "MAILGLASS_REDIS_URL")
    with Subscription(client, None, None) as subscription:
        assert publish_link(client) == Published(2, 0)
        assert next(subscription) == Update("mailglass:events:acme", {"delivery_id": "d"})


async def receive_one(client: redis.Redis) -> Update | Missed:
    """Publish one message, and return what an asynchronous subscription receives."""
    async with AsyncSubscription(client, "acme", None) as updates:
        assert publish_link(client) == Published(2, 0)
        return await anext(updates)


def test_an_asynchronous_subscription_takes_any_client_as_its_pattern(over_tls, deployment) -> None:
    """The client may use TLS with the CA in the URL, Sentinel, or a Unix socket."""
    with server("redis-server", "unixsocket socket") as port, local(port) as unix_server:
        directory = unix_server.config_get("dir")["dir"]
        for client in (
            create_client(SecretStr(over_tls), "MAILGLASS_REDIS_URL"),
            master_for(deployment),
            create_client(SecretStr(f"redis+socket://:{PASSWORD}@{directory}/socket"), "MAILGLASS_REDIS_URL"),
        ):
            assert asyncio.run(receive_one(client)) == Update("mailglass:events:acme", {"delivery_id": "d"})


def test_an_asynchronous_subscription_behind_sentinel_over_tls(certified: Path) -> None:
    """Sentinel and master speak TLS only."""
    with server("redis-server", tls=certified) as master:
        watched = f"sentinel monitor mymaster 127.0.0.1 {master} 1"
        auth = f"sentinel auth-pass mymaster {PASSWORD}"
        with server("redis-sentinel", "tls-replication yes", watched, auth, tls=certified) as port:
            tls = {"ssl": True, "ssl_ca_certs": str(certified / "ca.crt")}
            closed = {"password": PASSWORD, **tls}
            client = Sentinel([("127.0.0.1", port)], sentinel_kwargs=closed).master_for("mymaster", **closed)
            assert asyncio.run(receive_one(client)) == Update("mailglass:events:acme", {"delivery_id": "d"})


def test_a_worker_behind_sentinel_has_its_broker_its_lock_its_results_and_its_broadcasts(
    db, deployment, tmp_path
) -> None:
    """An adopter's app has Celery's own `sentinel://`, and our client by `configure`."""
    site = Site(db, f"redis://:{PASSWORD}@127.0.0.1:{deployment.master}/0", tmp_path / "log")
    site.add(1)
    with site.worker(app="worker", pool="solo", WORKER_SENTINEL=str(deployment.sentinel)):
        result = site.result(site.send(queue="celery"))
        assert (result["linked"], result["published"]) == (1, 2)
    assert site.count_in_log("lock cannot be used") == site.count_in_log("cannot publish") == 0
    site.close()
