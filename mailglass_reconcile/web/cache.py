"""A cache for a few seconds whose entries are read once, however many viewers ask at the same time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from mailglass_reconcile.errors import MailglassReconcileError

T = TypeVar("T")

MOST_ENTRIES = 256
"""Entries at most, each of a page at most; the oldest is evicted first."""
CONCURRENT_READS = 4
"""Concurrent reads of the database, each on a connection of its own."""
IN_FLIGHT = 64
"""Reads in flight or queued; more are refused."""


class BusyError(MailglassReconcileError):
    """Too many reads are in flight."""


class Cache:
    """Results by key; a second caller waits for the read that is in flight."""

    def __init__(self, seconds: float) -> None:
        """Keep each result for *seconds* after it was read, an error as well."""
        self._seconds = seconds
        self._entries: OrderedDict[Hashable, tuple[Future[Any], list[float]]] = OrderedDict()
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(CONCURRENT_READS)
        self._in_flight = 0

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return the cached result for *key*, or call *read*; raises its exception."""
        # A thread of its own, so that nothing waits at the end of the process for a read that hangs.
        answer: T = await asyncio.shield(asyncio.wrap_future(self._start(key, read)))
        return answer

    def _start(self, key: Hashable, read: Callable[[], T]) -> Future[T]:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and (not entry[1] or entry[1][0] > time.monotonic()):
                return entry[0]
            if self._in_flight >= IN_FLIGHT:
                raise BusyError("too many requests at the same time: try again in a moment")
            self._in_flight += 1
            answer: Future[T] = Future()
            answer.set_running_or_notify_cancel()
            until: list[float] = []
            self._entries[key] = (answer, until)
            self._entries.move_to_end(key)
            while len(self._entries) > MOST_ENTRIES:
                self._entries.popitem(last=False)
        threading.Thread(target=self._read, args=(answer, until, read), daemon=True).start()
        return answer

    def _read(self, answer: Future[T], until: list[float], read: Callable[[], T]) -> None:
        with self._slots:
            try:
                result = read()
            except BaseException as error:  # all waiting threads get it, of any kind
                self._set_expiry(until)
                answer.set_exception(error)
            else:
                self._set_expiry(until)
                answer.set_result(result)

    def _set_expiry(self, until: list[float]) -> None:
        with self._lock:
            self._in_flight -= 1
            until.append(time.monotonic() + self._seconds)
