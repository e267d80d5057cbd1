"""Subscribing to the broadcasts, for a thread and for an event loop; a lost connection is made again.

What is received, when a connection counts as lost and how it is made again is written once, as coroutines. An event
loop runs them as they are. For a thread every step of theirs blocks, so they end without having waited.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from mailglass_reconcile.errors import RedisUnavailableError
from mailglass_reconcile.pubsub.channels import EVERY_CHANNEL, events_channel
from mailglass_reconcile.pubsub.client import async_client, fail_fast_client, server_of
from mailglass_reconcile.pubsub.library import redis
from mailglass_reconcile.rules import unreachable

T = TypeVar("T")

logger = logging.getLogger(__name__)

PING_SECONDS = 10.0
"""After so much silence the server gets a PING; it has half of that to answer."""

RECONNECT_SECONDS = (0.1, 5.0)
"""The first and the longest pause between two attempts to connect again."""

CLOSE_SECONDS = 0.25
"""How soon a thread that waits for a broadcast notices `close()`."""

SETTING = "MAILGLASS_REDIS_URL"
RIGHTS = "the commands SUBSCRIBE, PSUBSCRIBE and PING on the channels mailglass:events:*"


class Update(NamedTuple):
    """A broadcast.

    Attributes:
        channel: The channel, with the tenant's id percent-encoded.
        message: The JSON object; `docs/handlers.md` shows one.
    """

    channel: str
    message: dict[str, Any]


class Missed(NamedTuple):
    """The connection was lost: broadcasts between the two times, both in UTC, may have been missed.

    It comes after the new subscription is confirmed. If you now read what you need from the tables, you miss nothing.

    Attributes:
        since: When something was last received.
        until: When the server had confirmed the subscription again.
    """

    since: dt.datetime
    until: dt.datetime


class _LostError(Exception):
    """The server does not answer, or redis-py has silently connected again."""


def _faults() -> tuple[type[Exception], ...]:
    return redis.RedisError, OSError, _LostError


class _Feed(ABC):
    """One subscription; how it waits is left to the two kinds."""

    def __init__(
        self, client: Any, pattern: redis.Redis, tenant_id: str | None, delivery_id: str | UUID | None, ping: float
    ) -> None:
        self._client = client
        self._server = server_of(pattern, SETTING)
        self._delivery_id = None if delivery_id is None else str(UUID(str(delivery_id)))
        self._channel = None if tenant_id is None else events_channel(tenant_id, self._delivery_id)
        self._ping_seconds = ping
        self._pubsub = client.pubsub()
        self._closed = False
        self._lost = False
        self._last_received = dt.datetime.now(dt.UTC)

    @abstractmethod
    async def _get(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message of the server, or None after so many *seconds*."""

    @abstractmethod
    async def _pause(self, seconds: float) -> None:
        """Wait for so many *seconds*."""

    async def _open(self) -> None:
        """Subscribe for the first time.

        Raises:
            RedisUnavailableError: The server cannot be reached, or refuses.
        """
        try:
            await self._subscribe()
        except _faults() as error:
            await self._disconnect()
            raise RedisUnavailableError(self._refusal(error)) from None

    async def _next(self) -> Update | Missed | None:
        """Return the next item, or None if the subscription has been closed."""
        while not self._closed:
            if self._lost:
                return await self._recover()
            try:
                message = await self._receive()
            except _faults() as error:
                self._note_loss(error)
                continue
            if message and (update := self._update_of(message)):
                return update
        return None

    async def _subscribe(self) -> None:
        self._pubsub = self._client.pubsub()
        if self._channel is None:
            await _done(self._pubsub.psubscribe(EVERY_CHANNEL))
        else:
            await _done(self._pubsub.subscribe(self._channel))
        message = await self._get(self._ping_seconds / 2)
        if message is None or not message["type"].endswith("subscribe"):
            raise _LostError("it timed out")
        self._last_received = dt.datetime.now(dt.UTC)

    async def _receive(self) -> dict[str, Any] | None:
        """Return the server's next message after at most a ping and a half of silence, or None if closed."""
        message = await self._get(self._ping_seconds)
        if message is None and not self._closed:
            await _done(self._pubsub.ping())
            message = await self._get(self._ping_seconds / 2)
        if message is None and not self._closed:
            raise _LostError("it timed out")
        if message and message["type"].endswith("subscribe"):  # redis-py has connected again by itself
            raise _LostError("connection closed")
        self._last_received = dt.datetime.now(dt.UTC)
        return message

    def _note_loss(self, error: Exception) -> None:
        self._lost = not self._closed
        if self._lost:
            cause, _ = unreachable.told_apart(error, self._server)
            place, setting = self._server.place, self._server.setting
            logger.warning("lost Redis at %s (%s): %s; broadcasts are missed until it is back", place, setting, cause)

    async def _recover(self) -> Missed | None:
        """Connect again, however long it takes, and return what may have been missed; None if closed meanwhile."""
        since, pause = self._last_received, RECONNECT_SECONDS[0]
        while not self._closed:
            await self._disconnect()
            try:
                await self._subscribe()
            except _faults():
                await self._pause(pause)
                pause = min(2 * pause, RECONNECT_SECONDS[1])
            else:
                self._lost = False
                return Missed(since, self._last_received)
        return None

    async def _disconnect(self) -> None:
        await _done(self._pubsub.aclose() if hasattr(self._pubsub, "aclose") else self._pubsub.close())

    def _refusal(self, error: Exception) -> str:
        if isinstance(error, redis.exceptions.NoPermissionError):
            return f"cannot listen to Redis at {self._server.place}: the user of {self._server.setting} needs {RIGHTS}"
        return unreachable.sentence(error, self._server)

    def _update_of(self, received: dict[str, Any]) -> Update | None:
        """Return the broadcast in *received*, if it is one of this subscription; anybody may publish anything."""
        if not received["type"].endswith("message"):
            return None
        channel = received["channel"]
        channel = channel.decode(errors="replace") if isinstance(channel, bytes) else channel
        # Each event comes on two channels: its tenant's, and that of its delivery, which has one more part.
        if self._channel is None and channel.count(":") != (2 if self._delivery_id is None else 3):
            return None
        try:
            message = json.loads(received["data"], parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict):
            return None
        if self._channel is None and self._delivery_id and channel.rpartition(":")[2] != self._delivery_id:
            return None
        return Update(channel, message)


class Subscription(_Feed):
    """An iterator over broadcasts, each event once; it ends when it is closed, as a `with` block does at its end."""

    def __init__(
        self,
        client: redis.Redis,
        tenant_id: str | None,
        delivery_id: str | UUID | None,
        *,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        """Subscribe, and wait until the server has confirmed it.

        Raises:
            RedisUnavailableError: The server cannot be reached, or refuses.
            ValueError: *delivery_id* is not a UUID.
        """
        super().__init__(fail_fast_client(client), client, tenant_id, delivery_id, ping_seconds)
        self._iterating = threading.Lock()
        _result(self._open())

    def __iter__(self) -> Iterator[Update | Missed]:
        """Return itself."""
        return self

    def __next__(self) -> Update | Missed:
        """Wait for the next broadcast; if the connection is lost, log it and connect again."""
        with self._iterating:
            item = _result(self._next())
            if item is None:
                _result(self._disconnect())
                raise StopIteration
        return item

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
        self._closed = True
        # While another frame or thread iterates, the connection is in use: the iteration closes it at its end.
        if self._iterating.acquire(blocking=False):
            try:
                _result(self._disconnect())
            finally:
                self._iterating.release()

    async def _get(self, seconds: float) -> dict[str, Any] | None:
        until = time.monotonic() + seconds
        while not self._closed:
            left = until - time.monotonic()
            message: dict[str, Any] | None = self._pubsub.get_message(timeout=max(0.0, min(left, CLOSE_SECONDS)))
            if message is not None or left <= CLOSE_SECONDS:
                return message
        return None

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._closed and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, CLOSE_SECONDS))


class AsyncSubscription(_Feed):
    """An asynchronous iterator over broadcasts, each event once; use it in an `async with` block.

    If you stop waiting for an item, as `asyncio.wait_for` does, nothing is lost: the next one is still to come.
    """

    def __init__(
        self,
        client: redis.Redis,
        tenant_id: str | None,
        delivery_id: str | UUID | None,
        *,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        """Prepare a subscription; nothing connects yet.

        Raises:
            ConfigurationError: *client* is of a kind that redis.asyncio cannot copy.
            ValueError: *delivery_id* is not a UUID.
        """
        super().__init__(async_client(client), client, tenant_id, delivery_id, ping_seconds)
        self._step: asyncio.Task[Update | Missed | None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncSubscription:
        """Subscribe, and wait until the server has confirmed it.

        Raises:
            RedisUnavailableError: The server cannot be reached, or refuses.
        """
        try:
            await self._open()
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
        step = self._step
        await asyncio.wait({step})  # if this is cancelled, the step is not: the next call gets its item
        self._step = None
        item = None if step.cancelled() else step.result()
        if item is None:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the iteration and close the connection; from any task of the same event loop, also if Redis is down."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # a cancelled scope of anyio cancels this await as well

    async def _close(self) -> None:
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})
        await self._disconnect()

    async def _get(self, seconds: float) -> dict[str, Any] | None:
        return await self._pubsub.get_message(timeout=seconds)  # type: ignore[no-any-return]

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _done(call: Any) -> Any:
    """Return the result of a call of redis-py, which redis.asyncio's has to be awaited for."""
    return await call if inspect.isawaitable(call) else call


def _result(blocking: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits."""
    try:
        blocking.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise RuntimeError("a step of a blocking subscription has waited for an event loop")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
