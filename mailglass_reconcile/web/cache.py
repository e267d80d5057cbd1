"""Reads of the database in a few threads, once for all viewers who ask within some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

CONCURRENT_READS = 4
"""Concurrent reads of the database, each on a connection of its own."""


class Cache:
    """Results by key; a second viewer waits for the read in flight. Only for the thread of an event loop."""

    def __init__(self, seconds: float) -> None:
        """Keep each result for *seconds* after it was read, an error as well."""
        self._seconds = seconds
        self._reads: dict[Hashable, asyncio.Future[Any]] = {}
        self._expires_at: dict[Hashable, float] = {}
        self._threads = ThreadPoolExecutor(CONCURRENT_READS)

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return the cached result for *key*, or call *read* in a thread; raises its exception."""
        now = time.monotonic()
        for expired in [other for other, expires_at in self._expires_at.items() if expires_at <= now]:
            del self._reads[expired], self._expires_at[expired]
        if key not in self._reads:
            self._reads[key] = asyncio.get_running_loop().run_in_executor(self._threads, read)
            self._reads[key].add_done_callback(lambda _: self._expire_later(key))
        answer: T = await asyncio.shield(self._reads[key])
        return answer

    def _expire_later(self, key: Hashable) -> None:
        self._expires_at[key] = time.monotonic() + self._seconds
