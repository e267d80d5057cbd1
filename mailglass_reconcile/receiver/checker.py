"""The one thread that verifies and reads bodies, so that at most one is parsed at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Turns:
    """Queues of jobs by provider: each provider in turn, and of one provider the smallest body first."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, list[tuple[int, int, Callable[[], None]]]] = {}
        self._numbers = count()

    def push(self, provider: Hashable, size: int, job: Callable[[], None]) -> None:
        heappush(self._queues.setdefault(provider, []), (size, next(self._numbers), job))

    def pop(self) -> Callable[[], None] | None:
        for provider, queue in self._queues.items():
            job = heappop(queue)[2]
            del self._queues[provider]
            if queue:
                self._queues[provider] = queue  # behind the others
            return job
        return None


class Checker:
    """Runs jobs in one thread: of those that wait, one of a verified body and one of an unverified one by turns."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mailglass-checker")
        self._lock = threading.Lock()
        self._next, self._other = _Turns(), _Turns()
        self._verified, self._unverified = self._next, self._other

    def run(self, provider: str, size: int, *, verified: bool, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """Return what is done when a job has run; if it is cancelled before, the job does not run."""
        future: Future[Any] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:  # raised where the future is awaited
                    future.set_exception(error)

        with self._lock:
            (self._verified if verified else self._unverified).push(provider, size, work)
        self._thread.submit(self._work)  # one for each job, whichever job it is then
        return asyncio.wrap_future(future)

    def _work(self) -> None:
        with self._lock:
            if work := self._next.pop():
                self._next, self._other = self._other, self._next
            else:
                work = self._other.pop()
        if work:
            work()
