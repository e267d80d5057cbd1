"""A subscriber in a thread of this process: notes when it hears about each event."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence

import redis

from mailglass_reconcile import events_channel


class Subscriber:
    """Listens on the channels of some tenants while the block runs; `told` has the times by event id."""

    def __init__(self, redis_url: str, tenants: Sequence[str]) -> None:
        """Subscribe to the channels of *tenants*."""
        self.told: dict[str, list[float]] = {}
        self._pubsub = redis.Redis.from_url(redis_url).pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*(events_channel(tenant) for tenant in tenants))
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Subscriber:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening."""
        self._ends.set()
        self._thread.join()
        self._pubsub.close()

    def wait_for(self, event_ids: Collection[str], seconds: float) -> None:
        """Wait until each of *event_ids* was announced exactly once.

        Raises:
            SystemExit: One was not announced within *seconds*, or announced twice.
        """
        deadline = time.monotonic() + seconds
        while missing := sum(event_id not in self.told for event_id in event_ids):
            if time.monotonic() > deadline:
                raise SystemExit(f"{missing} of {len(event_ids)} events were never announced; no figure of this counts")
            time.sleep(0.05)
        if twice := sum(len(self.told[event_id]) > 1 for event_id in event_ids):
            raise SystemExit(f"{twice} events were announced twice; no figure of this run counts")

    def _listen(self) -> None:
        while not self._ends.is_set():
            message = self._pubsub.get_message(timeout=0.2)
            if message is not None:
                heard, meta = time.monotonic(), json.loads(message["data"])["meta"]
                event_id = meta.get("reconciled_from_event_id", meta["event_id"])
                self.told.setdefault(event_id, []).append(heard)
