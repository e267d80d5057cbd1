"""The demo's subscriber: it hears both channels of every delivery, and keeps what it heard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import redis

from mailglass_reconcile.pubsub import events_channel

CONFIRMATION_SECONDS = 5.0


class Broadcast(NamedTuple):
    """A message as it was heard; `event_id` is the `reconciled` event that it is about."""

    channel: str
    event_id: str


class Listener:
    """Subscribes to tenants' channels and to those of all their deliveries; `heard` is all that came."""

    def __init__(self, url: str, tenant_ids: Iterable[str]) -> None:
        self.heard: list[Broadcast] = []
        self._tenants = [events_channel(tenant_id) for tenant_id in tenant_ids]
        self._url = url
        self._stack = ExitStack()

    def __enter__(self) -> Listener:
        """Subscribe, and wait until the server has confirmed it."""
        client = self._stack.enter_context(redis.Redis.from_url(self._url, decode_responses=True))
        self._pubsub = self._stack.enter_context(client.pubsub())
        self._pubsub.subscribe(*self._tenants)
        self._pubsub.psubscribe(*(f"{channel}:*" for channel in self._tenants))
        confirmations = 0
        deadline = time.monotonic() + CONFIRMATION_SECONDS
        while confirmations < 2 * len(self._tenants) and time.monotonic() < deadline:
            confirmations += self._pubsub.get_message(timeout=0.1) is not None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._stack.close()

    def poll(self) -> None:
        """Take the messages that have come since the last call into `heard`."""
        while (message := self._pubsub.get_message(timeout=0)) is not None:
            if message["type"] in ("message", "pmessage"):
                self.heard.append(_parse(message))


def _parse(message: dict[str, Any]) -> Broadcast:
    return Broadcast(message["channel"], json.loads(message["data"])["meta"]["event_id"])
