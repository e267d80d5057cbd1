"""The code of the page on live updates, with a Redis that runs, stops and restarts."""

import asyncio
import datetime as dt
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType

import pytest
import redis
from pydantic import SecretStr

import mailglass_reconcile
import pages
from faults.redis_servers import Valkey
from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook
from waiting import wait_until

pytestmark = pytest.mark.slow

PAGE = pages.ROOT / "docs" / "live-updates.md"
SECONDS, PATIENCE = 0.2, 60


def block(heading: str) -> str:
    """Return the first block of Python below a heading."""
    return next(response.text for response in pages.section(PAGE, heading) if response.language == "python")


def record_open(db) -> str:
    """Record a send and an open of it, broadcast both, and return the delivery's id."""
    event = WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="1", message_id="1")
    with db.engine.begin() as connection:
        sends = [Sent(recipient="a@b.example", message_id="1")]
        sent = record_send(connection, tenant_id="acme", provider="ses", sent=sends)
        recorded = record_webhook(connection, tenant_id="acme", provider="ses", events=[event])
    broadcast(recorded)
    return str(sent[0].delivery_id)


def test_a_subscriber_refreshes_the_delivery_of_an_update(db, redis_url):
    """The page's code refreshes everything at first, then the delivery."""
    refreshed = []

    def refresh(delivery_id: str) -> None:
        names["updates"].close()
        refreshed.append(delivery_id)

    names = {"refresh": refresh, "refresh_all": lambda: lines.append(record_open(db))}
    lines: list[str] = []
    exec(block("Subscribe"), names)  # noqa: S102 - our own page
    assert refreshed == lines


@pytest.fixture
def fan_out() -> ModuleType:
    """The module that the page names."""
    path = pages.ROOT / "examples/fastapi/fan_out.py"
    specification = importlib.util.spec_from_file_location("fan_out", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_many_listeners_share_a_subscription_and_refresh_while_redis_is_down(db, valkey, fan_out):
    """A message reaches only its delivery's listeners; without Redis they refresh, and later messages arrive again."""
    settings = db.settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)

    async def main() -> None:
        fan = fan_out.FanOut(SECONDS)
        running = asyncio.create_task(fan.run())
        delivery = await asyncio.to_thread(record_open, db)
        with fan.listen(delivery) as first, fan.listen(delivery) as two, fan.listen("another") as unrelated:
            for queue in (first, two, unrelated):
                assert await queue.get() is fan_out.REFRESH
            await eventually(lambda: subscribers(valkey))
            for queue in (first, two):
                await message_for(db, queue, delivery)
            valkey.stop()
            for _ in range(2):  # repeatedly, while it is down
                assert await asyncio.wait_for(unrelated.get(), PATIENCE) is fan_out.REFRESH
            valkey.start()
            await eventually(lambda: subscribers(valkey))
            for queue in (first, two):
                await message_for(db, queue, delivery)
            while not unrelated.empty():
                assert unrelated.get_nowait() is fan_out.REFRESH
        assert not fan.listeners
        running.cancel()

    asyncio.run(main())


async def message_for(db, queue: asyncio.Queue, delivery: str) -> None:
    """Record events of the delivery until its queue has a message, because one may be lost while Redis restarts."""
    message = None
    for _ in range(PATIENCE):
        await asyncio.to_thread(record_click, db)
        with suppress(TimeoutError):
            while message is None:
                message = await asyncio.wait_for(queue.get(), 1)
            break
    assert message["delivery_id"] == delivery


def record_click(db) -> None:
    """Record a new click, and broadcast it."""
    at = dt.datetime.now(dt.UTC)
    event = WebhookEvent(type="clicked", occurred_at=at, provider_event_id=str(at), message_id="1")
    with db.engine.begin() as connection:
        recorded = record_webhook(connection, tenant_id="acme", provider="ses", events=[event])
    broadcast(recorded)


def subscribers(valkey: Valkey) -> int:
    """Return the number of the server's subscriptions to every channel."""
    with suppress(redis.ConnectionError), redis.Redis.from_url(valkey.url) as client:
        return client.pubsub_numpat()
    return 0


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, without blocking the event loop."""
    await asyncio.to_thread(wait_until, condition)
