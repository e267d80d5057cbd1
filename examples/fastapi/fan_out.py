"""One subscription of a process, for any number of browsers; `updates.py` makes one for each."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mailglass_reconcile import AsyncSubscription, Missed, RedisUnavailableError, subscribe_async

REFRESH = None
"""In place of a message: read the delivery again."""

Queue = asyncio.Queue[dict[str, Any] | None]


class FanOut:
    """Distributes updates to listeners, who are told to refresh every few seconds while Redis is down."""

    def __init__(self, seconds: float = 15) -> None:
        """Keep the seconds between two looks at a quiet or missing server."""
        self.seconds = seconds
        self.listeners: defaultdict[str, set[Queue]] = defaultdict(set)

    async def run(self) -> None:
        """Distribute updates; start it as a task when your application starts."""
        while True:
            try:
                async with subscribe_async() as updates:
                    self.refresh()
                    while True:
                        await self.distribute(updates)
            except RedisUnavailableError:  # listeners read the tables until it is back
                self.refresh()
                await asyncio.sleep(self.seconds)

    async def distribute(self, updates: AsyncSubscription) -> None:
        """Give the next update to the delivery's listeners."""
        try:
            update = await asyncio.wait_for(anext(updates), self.seconds)
        except TimeoutError:
            async with subscribe_async():  # it is quiet, or Redis is down: then this raises
                return
        if isinstance(update, Missed):
            self.refresh()
            return
        for queue in self.listeners.get(update.message["delivery_id"], ()):
            put(queue, update.message)

    def refresh(self) -> None:
        """Tell all listeners to read their delivery."""
        for queues in list(self.listeners.values()):
            for queue in queues:
                put(queue, REFRESH)

    @contextmanager
    def listen(self, delivery_id: str) -> Iterator[Queue]:
        """Yield a queue of a delivery's messages; REFRESH comes first, and whenever one may have been missed."""
        queue = Queue(maxsize=10)
        put(queue, REFRESH)
        self.listeners[delivery_id].add(queue)
        try:
            yield queue
        finally:
            self.listeners[delivery_id].discard(queue)
            if not self.listeners[delivery_id]:
                del self.listeners[delivery_id]


def put(queue: Queue, item: dict[str, Any] | None) -> None:
    """Add an item; a listener that is too slow loses what it has not read and refreshes instead."""
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        item = REFRESH
    queue.put_nowait(item)
