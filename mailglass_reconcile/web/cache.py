"""A cache for a few seconds whose entries are read once, however many viewers ask at the same time."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.web import daemon_thread

T = TypeVar("T")

MOST_ENTRIES = 256
"""Entries at most, each of a page at most; the oldest is evicted first."""
CONCURRENT_READS = 4
"""Concurrent reads of the database, each on a connection of its own."""
IN_FLIGHT = 64
"""Reads in flight or queued; more are refused."""


class BusyError(MailglassReconcileError):
    """Too many reads are in flight."""


@dataclass(slots=True)
class _CachedRead:
    answer: Future[Any]
    expires_at: float = math.inf
    """In seconds of the monotonic clock; infinite while the read is in flight."""


class Cache:
    """Results by key; a second caller waits for the read that is in flight. Only for the thread of an event loop."""

    def __init__(self, seconds: float) -> None:
        """Keep each result for *seconds* after it was read, an error as well."""
        self._seconds = seconds
        self._entries: OrderedDict[Hashable, _CachedRead] = OrderedDict()
        self._slots = threading.Semaphore(CONCURRENT_READS)

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return the cached result for *key*, or call *read*; raises its exception."""
        entry = self._entries.get(key)
        if entry is None or entry.expires_at <= time.monotonic():
            entry = self._entries[key] = self._start(read)
            self._entries.move_to_end(key)
            while len(self._entries) > MOST_ENTRIES:
                self._entries.popitem(last=False)
        answer: T = await asyncio.shield(asyncio.wrap_future(entry.answer))
        return answer

    def _start(self, read: Callable[[], T]) -> _CachedRead:
        if sum(not entry.answer.done() for entry in self._entries.values()) >= IN_FLIGHT:
            raise BusyError("too many requests at the same time: try again in a moment")

        def read_in_turn() -> T:
            with self._slots:
                return read()

        def expire_later(_: Future[T]) -> None:
            entry.expires_at = time.monotonic() + self._seconds

        entry = _CachedRead(daemon_thread.start(read_in_turn))
        entry.answer.add_done_callback(expire_later)
        return entry
