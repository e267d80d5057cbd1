"""Subscribing to the broadcasts, for a thread and for an event loop; a lost connection is made again."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from mailglass_reconcile.errors import RedisUnavailableError
from mailglass_reconcile.pubsub.channels import EVERY_CHANNEL, TEST, events_channel
from mailglass_reconcile.pubsub.client import async_client, server_of
from mailglass_reconcile.pubsub.lazy_redis import redis
from mailglass_reconcile.rules import connection_errors

T = TypeVar("T")

logger = logging.getLogger(__name__)

PING_SECONDS = 10.0
"""After so much silence the server gets a PING."""

ANSWER_SECONDS = 5.0
"""A server that takes longer to answer a PING, or to confirm a subscription, is lost."""

RECONNECT_SECONDS = (0.1, 5.0)
"""The first and the longest pause between two attempts to connect again."""

CANCEL_SECONDS = 0.1
"""A step that has not ended so long after it was cancelled is cancelled again."""

SETTING = "MAILGLASS_REDIS_URL"
PERMISSIONS = "the commands SUBSCRIBE, PSUBSCRIBE and PING on the channels mailglass:events:*"


class Update(NamedTuple):
    """A live update.

    Attributes:
        channel: The channel, with the tenant's id percent-encoded.
        message: The JSON object; `docs/live-updates.md` shows one.
    """

    channel: str
    message: dict[str, Any]


class Missed(NamedTuple):
    """A gap: the connection was lost, and updates between the two times may be missing, so read the tables now.

    Attributes:
        since: When the last message was received, in UTC.
        until: When the server had confirmed the new subscription, in UTC.
    """

    since: dt.datetime
    until: dt.datetime


class _LostError(Exception):
    """The server does not answer, or redis-py has silently connected again."""


def _lost_errors() -> tuple[type[Exception], ...]:
    return redis.RedisError, OSError, _LostError


class AsyncSubscription:
    """The asynchronous iterator that `subscribe_async` returns: each event once.

    Leaving its `async with` block closes it, and so does `aclose()`, from any task of the event loop. If you stop
    waiting for an item, as `asyncio.wait_for` does, no update is lost.
    """

    def __init__(
        self,
        client: redis.Redis,
        tenant_id: str | None,
        delivery_id: str | UUID | None,
        *,
        ping_seconds: float = PING_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Prepare a subscription; nothing connects yet.

        Raises:
            ConfigurationError: *client* is of a kind that redis.asyncio cannot copy.
            ValueError: *delivery_id* is not a UUID.
        """
        self._client = async_client(client)
        self._server = server_of(client, SETTING)
        self._delivery_id = None if delivery_id is None else str(UUID(str(delivery_id)))
        self._channel = None if tenant_id is None else events_channel(tenant_id, self._delivery_id)
        self._ping_seconds = ping_seconds
        self._answer_seconds = answer_seconds
        self._pubsub = self._client.pubsub()
        self._closed = False
        self._lost = False
        self._last_received = dt.datetime.now(dt.UTC)
        # The connection is used in a task of its own: redis-py could lose a cancellation of the caller's.
        self._step: asyncio.Task[Update | Missed | None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncSubscription:
        """Subscribe, and wait until the server has confirmed it.

        Raises:
            RedisUnavailableError: The server cannot be reached, or refuses.
        """
        self._step = asyncio.ensure_future(self._open())
        try:
            await self._await_step(self._step)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Update | Missed]:
        """Return itself."""
        return self

    async def __anext__(self) -> Update | Missed:
        """Wait for the next broadcast; if the connection is lost, log it and connect again."""
        if self._closed:
            raise StopAsyncIteration
        if self._step is None:
            self._step = asyncio.ensure_future(self._next())
        item = await self._await_step(self._step)
        if item is None:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the iteration and close the connection; from any task of the same event loop, even if Redis is down."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # a cancelled scope of anyio cancels this await as well

    async def _close(self) -> None:
        while self._step is not None and not self._step.done():
            self._step.cancel()  # again, because redis-py may lose it: `asyncio.wait_for` does so in Python 3.11
            await asyncio.wait({self._step}, timeout=CANCEL_SECONDS)
        await self._disconnect()

    async def _await_step(self, step: asyncio.Task[Update | Missed | None]) -> Update | Missed | None:
        """Await *step* and return its result, or None if it was cancelled; a cancelled caller leaves it to the next."""
        await asyncio.wait({step})
        self._step = None
        return None if step.cancelled() else step.result()

    async def _open(self) -> None:
        try:
            await self._subscribe()
        except _lost_errors() as error:
            raise RedisUnavailableError(self._describe_refusal(error)) from None

    async def _next(self) -> Update | Missed | None:
        """Return the next item, or None if the subscription has been closed."""
        while not self._closed:
            if self._lost:
                return await self._recover()
            try:
                message = await self._receive()
            except _lost_errors() as error:
                self._mark_lost(error)
                continue
            if message and (update := self._parse_update(message)):
                return update
        return None

    async def _subscribe(self) -> None:
        self._pubsub = self._client.pubsub()
        if self._channel is None:
            await self._pubsub.psubscribe(EVERY_CHANNEL)
        else:
            await self._pubsub.subscribe(self._channel)
        message = await self._read_reply()
        if message is None or not message["type"].endswith("subscribe"):
            raise _LostError("it timed out")
        self._last_received = dt.datetime.now(dt.UTC)

    async def _receive(self) -> dict[str, Any] | None:
        """Return the server's next message, after silence the reply to a PING, or None if closed."""
        message: dict[str, Any] | None = await self._pubsub.get_message(timeout=self._ping_seconds)
        if message is None and not self._closed:
            await self._pubsub.ping()
            message = await self._read_reply()
        if message is None and not self._closed:
            raise _LostError("it timed out")
        if message and message["type"].endswith("subscribe"):  # redis-py has connected again by itself
            raise _LostError("connection closed")
        self._last_received = dt.datetime.now(dt.UTC)
        return message

    async def _read_reply(self) -> dict[str, Any] | None:
        """Return the server's next message, or None if it did not answer in time."""
        message: dict[str, Any] | None = await self._pubsub.get_message(timeout=self._answer_seconds)
        if message is None:  # if the event loop was held up, the time is over although the answer has come
            message = await self._pubsub.get_message(timeout=0)
        return message

    def _mark_lost(self, error: Exception) -> None:
        self._lost = not self._closed
        if self._lost:
            cause, _ = connection_errors.classify(error, self._server)
            place, setting = self._server.location, self._server.setting
            logger.warning("lost Redis at %s (%s): %s; broadcasts are missed until it is back", place, setting, cause)

    async def _recover(self) -> Missed | None:
        """Connect again, however long it takes, and return the gap; None if closed meanwhile."""
        since, pause = self._last_received, RECONNECT_SECONDS[0]
        while not self._closed:
            await self._disconnect()
            try:
                await self._subscribe()
            except _lost_errors():
                await asyncio.sleep(pause)
                pause = min(2 * pause, RECONNECT_SECONDS[1])
            else:
                self._lost = False
                return Missed(since, self._last_received)
        return None

    async def _disconnect(self) -> None:
        await self._pubsub.aclose()

    def _describe_refusal(self, error: Exception) -> str:
        if isinstance(error, redis.exceptions.NoPermissionError):
            server = self._server
            return f"cannot listen to Redis at {server.location}: the user of {server.setting} needs {PERMISSIONS}"
        return connection_errors.describe(error, self._server)

    def _parse_update(self, received: dict[str, Any]) -> Update | None:
        """Parse a message into this subscription's update, or None: other clients may publish anything."""
        if not received["type"].endswith("message"):
            return None
        channel = received["channel"]
        channel = channel.decode(errors="replace") if isinstance(channel, bytes) else channel
        # Each event comes on two channels: its tenant's, and that of its delivery, which has one more part.
        if self._channel is None and channel.count(":") != (2 if self._delivery_id is None else 3):
            return None
        try:
            message = json.loads(received["data"], parse_constant=_reject_constant)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict) or message.get("event") == TEST or not _has_ids(message):
            return None
        if self._channel is None and self._delivery_id and channel.rpartition(":")[2] != self._delivery_id:
            return None
        return Update(channel, message)


class Subscription:
    """The iterator that `subscribe` returns: each event once.

    Leaving its `with` block closes it. `close()` ends the iteration and closes the connection, from any thread or a
    signal handler.
    """

    def __init__(
        self,
        client: redis.Redis,
        tenant_id: str | None,
        delivery_id: str | UUID | None,
        *,
        ping_seconds: float = PING_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Subscribe, and wait until the server has confirmed it.

        Raises:
            ConfigurationError: *client* is of a kind that redis.asyncio cannot copy.
            RedisUnavailableError: The server cannot be reached, or refuses.
            ValueError: *delivery_id* is not a UUID.
        """
        self._updates = AsyncSubscription(
            client, tenant_id, delivery_id, ping_seconds=ping_seconds, answer_seconds=answer_seconds
        )
        self._iterating = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="mailglass subscription")
        self._thread.start()
        try:
            self._run(self._updates.__aenter__())
        except BaseException:
            self._end()
            raise

    def __iter__(self) -> Iterator[Update | Missed]:
        """Return itself."""
        return self

    def __next__(self) -> Update | Missed:
        """Wait for the next broadcast; if the connection is lost, log it and connect again."""
        with self._iterating:
            if self._loop.is_closed():
                raise StopIteration
            try:
                return self._run(self._updates.__anext__())
            except StopAsyncIteration:
                self._end()
                raise StopIteration from None

    def __enter__(self) -> Subscription:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the iteration, within a quarter of a second, and close the connection.

        Call it from any thread or from a signal handler, at any time: also while Redis is down.
        """
        # While another frame or thread iterates, this only asks: it may have interrupted that frame within a lock.
        if self._iterating.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._iterating.release()
        elif not self._loop.is_closed():
            with suppress(RuntimeError):  # it has been closed this moment
                asyncio.run_coroutine_threadsafe(self._updates.aclose(), self._loop)

    def _run(self, step: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result()

    def _end(self) -> None:
        if self._loop.is_closed():
            return
        self._run(self._updates.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _has_ids(message: dict[str, Any]) -> bool:
    """Return True if the ids of a broadcast are strings, as in ours: other clients may publish anything."""
    meta = message.get("meta", {})
    if not isinstance(meta, dict):
        return False
    ids = [meta[name] for name in ("event_id", "tenant_id", "reconciled_from_event_id") if name in meta]
    return all(isinstance(id_, str) for id_ in (message.get("delivery_id"), *ids))


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
