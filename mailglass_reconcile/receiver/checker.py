"""The one thread that verifies and reads bodies, so that at most one is parsed at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple, TypeVar

FREE_TURNS = 3
"""Turns of the event loop between two jobs: beside a thread that always computes, each read of a socket takes 5 ms."""

Result = TypeVar("Result")


class _Job(NamedTuple):
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class _Turns:
    """Queues of jobs by provider: each provider in turn, and of one provider the smallest body first."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, list[tuple[int, int, _Job]]] = {}
        self._numbers = count()

    def push(self, provider: Hashable, size: int, job: _Job) -> None:
        heappush(self._queues.setdefault(provider, []), (size, next(self._numbers), job))

    def pop(self) -> _Job | None:
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
        self._running: Future[Any] | None = None
        self._next, self._other = _Turns(), _Turns()
        self._verified, self._unverified = self._next, self._other

    def run(self, provider: str, size: int, *, verified: bool, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """Return what is done when a job has run; if it is cancelled before, the job does not run."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        (self._verified if verified else self._unverified).push(provider, size, _Job(job, future, loop))
        self._start_next()
        return future

    def _start_next(self, free_turns: int = 0) -> None:
        if free_turns:
            asyncio.get_running_loop().call_soon(self._start_next, free_turns - 1)
            return
        while (self._running is None or self._running.done()) and (job := self._pop()):
            if not job.future.done():
                self._running = self._thread.submit(job.function)
                self._running.add_done_callback(lambda ran, job=job: self._hand_back(job, ran))  # type: ignore[misc]

    def _pop(self) -> _Job | None:
        if job := self._next.pop():
            self._next, self._other = self._other, self._next
            return job
        return self._other.pop()

    def _hand_back(self, job: _Job, ran: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop was closed
            job.loop.call_soon_threadsafe(self._finish, job, ran)

    def _finish(self, job: _Job, ran: Future[Any]) -> None:
        if not job.future.done():
            if error := ran.exception():
                job.future.set_exception(error)
            else:
                job.future.set_result(ran.result())
        self._start_next(FREE_TURNS)
