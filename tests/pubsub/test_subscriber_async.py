"""`subscribe_async()` does what `subscribe()` does, in an event loop that is never blocked."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import psutil
import pytest
import redis

import factories
import mailglass_reconcile
from faults.redis_servers import silent
from mailglass_reconcile import RedisUnavailableError, events_channel, subscribe_async
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub import AsyncSubscription
from waiting import PATIENCE, wait_until

DELIVERY = "0a1b2c3d-0000-4000-8000-00000000000a"


def publish(url: str, tenant: str, delivery: str, number: int) -> None:
    """Publish one update like a sweep, on the tenant's channel and on the delivery's."""
    message = json.dumps({"event": "delivery_updated", "delivery_id": delivery, "number": number})
    with redis.Redis.from_url(url) as client:
        client.publish(events_channel(tenant), message)
        client.publish(events_channel(tenant, delivery), message)


async def wait_for_condition(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, without blocking the event loop."""
    await asyncio.to_thread(wait_until, condition)


def test_a_sweep_is_received_with_the_configured_redis(db):
    """The public function is iterated."""
    factories.delivery(db, "one")
    orphan = factories.orphan(db, factories.postmark("one"))

    async def main() -> dict[str, Any]:
        async with subscribe_async(factories.TENANT) as updates:
            await asyncio.to_thread(mailglass_reconcile.reconcile)
            async for update in updates:
                return update.message
        raise AssertionError

    assert asyncio.run(main())["meta"]["reconciled_from_event_id"] == orphan


def test_an_answer_that_waits_in_the_socket_while_the_event_loop_is_held_up_is_in_time(redis_url):
    """Otherwise an application that blocks its loop for seconds would lose the connection, and updates."""

    async def main() -> None:
        with redis.Redis.from_url(redis_url) as client:
            async with AsyncSubscription(client, "acme", None) as updates:
                updates._answer_seconds = 0.02
                waiting = asyncio.ensure_future(updates._read_reply())
                await asyncio.sleep(0)
                publish(redis_url, "acme", DELIVERY, 1)
                assert client.ping()  # the message has been sent
                time.sleep(0.03)
                message = await waiting
                assert message["type"] == "message"

    asyncio.run(main())


async def _close(subscription: AsyncSubscription, waiting: "asyncio.Task[list[Any]]") -> None:
    await subscription.aclose()
    assert await asyncio.wait_for(waiting, 20) == []


async def _cancel(subscription: AsyncSubscription, waiting: "asyncio.Task[list[Any]]") -> None:
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 20)


async def _read_all(subscription: AsyncSubscription) -> list[Any]:
    async with subscription as updates:
        return [update async for update in updates]


@pytest.mark.parametrize("state", ["quiet", "down", "hangs"])
@pytest.mark.parametrize("end", [_close, _cancel])
def test_a_subscription_ends_at_any_time(
    valkey, caplog, state, end: Callable[[AsyncSubscription, "asyncio.Task[list[Any]]"], Awaitable[None]]
):
    """Another task calls `aclose()`, or its task is cancelled, as when a browser disconnects."""
    with redis.Redis.from_url(valkey.url) as client:
        process = psutil.Process(client.info("server")["process_id"])

    async def main() -> None:
        client = redis.Redis.from_url(valkey.url)
        subscription = AsyncSubscription(client, None, None, ping_seconds=0.1, answer_seconds=0.5)
        waiting = asyncio.create_task(_read_all(subscription))
        with redis.Redis.from_url(valkey.url) as client:
            await wait_for_condition(client.pubsub_numpat)
        if state == "down":
            await asyncio.to_thread(valkey.stop)
        elif state == "hangs":
            process.suspend()
        if state != "quiet":
            await wait_for_condition(lambda: "broadcasts are missed until it is back" in caplog.text)
        await end(subscription, waiting)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)

    try:
        asyncio.run(main())
    finally:
        if state == "hangs":
            process.resume()
    if state != "down":
        with redis.Redis.from_url(valkey.url) as client:
            wait_until(lambda: client.pubsub_numpat() == 0)


@pytest.mark.slow
def test_a_subscription_can_be_cancelled_at_each_moment_while_it_opens(redis_url):
    """redis-py uses `asyncio.wait_for`, which may lose a cancellation in Python 3.11."""
    patient = {"socket_timeout": 10, "socket_connect_timeout": 10}  # a busy machine is late, not unreachable

    async def main() -> None:
        with redis.Redis.from_url(redis_url, socket_timeout=PATIENCE) as client:
            for steps in range(200):
                subscription = AsyncSubscription(client, None, None)
                subscription._client.connection_pool.connection_kwargs.update(patient)
                opening = asyncio.create_task(_read_all(subscription))
                for _ in range(steps):
                    await asyncio.sleep(0)
                opening.cancel()
                await asyncio.wait({opening}, timeout=PATIENCE)
                assert opening.cancelled(), steps

    asyncio.run(main())


def test_a_cancelled_scope_of_anyio_leaves_no_connection(valkey):
    """When a browser leaves Starlette's stream, every await in the scope is cancelled, the exit's too."""

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with AsyncSubscription(redis.Redis.from_url(valkey.url), None, None) as updates:
                scope.cancel()
                await anext(updates)
        with redis.Redis.from_url(valkey.url) as client:
            await wait_for_condition(lambda: client.pubsub_numpat() == 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_nothing_is_lost_if_you_stop_waiting(redis_url):
    """A timeout for keep-alive comments may end a wait; the next call returns what has come since."""

    async def main() -> None:
        with redis.Redis.from_url(redis_url) as client:
            async with AsyncSubscription(client, "acme", None) as updates:
                for number in range(50):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(anext(updates), 0.001)
                    publish(redis_url, "acme", DELIVERY, number)
                    assert (await anext(updates)).message["number"] == number

    asyncio.run(main())


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine in an event loop of its own."""
    asyncio.run(coroutine)


async def enter_and_leave(client: redis.Redis) -> None:
    """Enter and leave a subscription's block."""
    async with AsyncSubscription(client, None, None, answer_seconds=0.5):
        pass


def test_a_redis_that_cannot_be_reached_is_one_clear_error(valkey):
    """Entering the block raises it, with host and setting and without the password."""
    valkey.command("ACL", "SETUSER", "deaf", "on", ">canary", "resetchannels", "nocommands", "+ping")
    deaf = valkey.url.replace("://", "://deaf:canary@")
    with silent() as (port, _):
        for url in (deaf, f"redis://:canary@127.0.0.1:{port}/0", "redis://:canary@127.0.0.1:1/0"):
            with pytest.raises(RedisUnavailableError, match=r"127\.0\.0\.1, port .*MAILGLASS_REDIS_URL") as caught:
                run(enter_and_leave(redis.Redis.from_url(url)))
            assert "canary" not in str(caught.value)


def test_wrong_arguments_are_refused_before_anything_connects():
    """A delivery that is no UUID could be a pattern; other kinds of clients cannot be copied."""
    with pytest.raises(ValueError, match="UUID"):
        subscribe_async(delivery_id="*")
    with pytest.raises(ConfigurationError, match=r"needs a redis\.Redis, not a object"):
        AsyncSubscription(object(), None, None)  # type: ignore[arg-type]
