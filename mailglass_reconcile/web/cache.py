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

KEPT = 256
"""Entries that are kept; the oldest is evicted first. Each is a page at most."""
AT_ONCE = 4
"""Reads of the database at the same time, each of which has a connection."""
IN_FLIGHT = 64
"""Reads in flight or queued; more are refused."""


class BusyError(MailglassReconcileError):
    """Too many reads are in flight."""


class Cache:
    """Results by key; a second caller waits for the read that is in flight."""

    def __init__(self, seconds: float) -> None:
        """Keep each result for *seconds* after it was read, an error as well."""
        self._seconds = seconds
        self._kept: OrderedDict[Hashable, tuple[Future[Any], list[float]]] = OrderedDict()
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(AT_ONCE)
        self._in_flight = 0

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return the result of *read*, or the one that is kept for *key*; its exception is raised."""
        # A thread of its own, so that nothing waits at the end of the process for a read that hangs.
        answer: T = await asyncio.shield(asyncio.wrap_future(self._answer(key, read)))
        return answer

    def _answer(self, key: Hashable, read: Callable[[], T]) -> Future[T]:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and (not kept[1] or kept[1][0] > time.monotonic()):
                return kept[0]
            if self._in_flight >= IN_FLIGHT:
                raise BusyError("too many requests at the same time: try again in a moment")
            self._in_flight += 1
            answer: Future[T] = Future()
            answer.set_running_or_notify_cancel()
            until: list[float] = []
            self._kept[key] = (answer, until)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        threading.Thread(target=self._read, args=(answer, until, read), daemon=True).start()
        return answer

    def _read(self, answer: Future[T], until: list[float], read: Callable[[], T]) -> None:
        with self._slots:
            try:
                result = read()
            except BaseException as error:  # all waiting threads get it, of any kind
                self._ended(until)
                answer.set_exception(error)
            else:
                self._ended(until)
                answer.set_result(result)

    def _ended(self, until: list[float]) -> None:
        with self._lock:
            self._in_flight -= 1
            until.append(time.monotonic() + self._seconds)
