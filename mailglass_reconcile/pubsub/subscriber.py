"""Listening to the broadcasts, for as long as it takes: a subscription that outlives its connections."""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple
from uuid import UUID

import redis
from redis.exceptions import NoPermissionError, RedisError

from mailglass_reconcile.errors import RedisUnavailableError
from mailglass_reconcile.pubsub.channels import EVERY_CHANNEL, events_channel
from mailglass_reconcile.pubsub.client import fail_fast_client, server_of
from mailglass_reconcile.rules import unreachable

logger = logging.getLogger(__name__)

PING_SECONDS = 10.0
"""Silence after which the server is asked whether it is still there; it has half of that to answer."""

PAUSE_SECONDS = (0.1, 5.0)
"""The first and the longest pause between two attempts to connect again."""

SETTING = "MAILGLASS_REDIS_URL"
RIGHTS = "the commands SUBSCRIBE, PSUBSCRIBE and PING on the channels mailglass:events:*"


class Update(NamedTuple):
    """A broadcast as it was heard.

    Attributes:
        channel: The channel, with the tenant's id percent-encoded.
        message: The JSON object; `docs/listening.md` shows one.
    """

    channel: str
    message: dict[str, Any]


class Missed(NamedTuple):
    """The connection was lost: broadcasts between the two times, both in UTC, may have been missed.

    It comes after the new subscription is confirmed. If you now read what you need from the tables, you miss nothing.

    Attributes:
        since: When the server was last heard.
        until: When it had confirmed the subscription again.
    """

    since: dt.datetime
    until: dt.datetime


class _LostError(Exception):
    """The server does not answer, or the connection was made again behind our back."""


class Subscription:
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
        self._client = fail_fast_client(client)
        self._delivery_id = None if delivery_id is None else str(UUID(str(delivery_id)))
        self._channel = None if tenant_id is None else events_channel(tenant_id, self._delivery_id)
        self._ping_seconds = ping_seconds
        self._closed = False
        try:
            self._subscribe()
        except (RedisError, OSError, _LostError) as error:
            self.close()
            raise RedisUnavailableError(self._refusal(error)) from None

    def __iter__(self) -> Iterator[Update | Missed]:
        """Return itself."""
        return self

    def __next__(self) -> Update | Missed:
        """Wait for the next broadcast; if the connection is lost, say so in the log and connect again."""
        while not self._closed:
            try:
                update = self._update_of(self._receive())
            except (RedisError, OSError, _LostError) as error:
                return self._recover(error)
            if update:
                return update
        raise StopIteration

    def __enter__(self) -> Subscription:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection; iterating ends."""
        self._closed = True
        self._pubsub.close()

    def _subscribe(self) -> None:
        self._pubsub = self._client.pubsub()  # type: ignore[no-untyped-call]
        if self._channel is None:
            self._pubsub.psubscribe(EVERY_CHANNEL)
        else:
            self._pubsub.subscribe(self._channel)
        message = self._pubsub.get_message(timeout=self._ping_seconds / 2)
        if message is None or not message["type"].endswith("subscribe"):
            raise _LostError("it timed out")
        self._heard = dt.datetime.now(dt.UTC)

    def _receive(self) -> dict[str, Any]:
        """Return what the server says next, after at most a ping and a half of silence."""
        message = self._pubsub.get_message(timeout=self._ping_seconds)
        if message is None:
            self._pubsub.ping()
            message = self._pubsub.get_message(timeout=self._ping_seconds / 2)
        if message is None:
            raise _LostError("it timed out")
        if message["type"].endswith("subscribe"):  # redis-py has connected again by itself
            raise _LostError("connection closed")
        self._heard = dt.datetime.now(dt.UTC)
        return dict(message)

    def _recover(self, error: Exception) -> Missed:
        """Connect again, however long it takes, and return what may have been missed."""
        since, pause = self._heard, PAUSE_SECONDS[0]
        server = server_of(self._client, SETTING)
        said, _ = unreachable.told_apart(error, server)
        logger.warning(
            "lost Redis at %s (%s): %s; broadcasts are missed until it is back", server.place, server.setting, said
        )
        while True:
            self._pubsub.close()
            try:
                self._subscribe()
            except (RedisError, OSError, _LostError):
                time.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS[1])
            else:
                return Missed(since, self._heard)

    def _refusal(self, error: Exception) -> str:
        server = server_of(self._client, SETTING)
        if isinstance(error, NoPermissionError):
            return f"cannot listen to Redis at {server.place}: the user of {server.setting} needs {RIGHTS}"
        return unreachable.sentence(error, server)

    def _update_of(self, received: dict[str, Any]) -> Update | None:
        """Return what was received if it is a broadcast that is asked for; anybody may publish anything."""
        if not received["type"].endswith("message"):
            return None
        channel = received["channel"]
        channel = channel.decode(errors="replace") if isinstance(channel, bytes) else channel
        # Each event is told on two channels: its tenant's, and that of its delivery, which has one more part.
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


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
