"""The thread that verifies and parses bodies, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple, TypeVar

IDLE_ITERATIONS = 3
"""Iterations of the event loop between two jobs: while a thread computes, each read of a socket takes 5 ms or more."""

Result = TypeVar("Result")


class _VerificationJob(NamedTuple):
    function: Callable[[], Any]
    future: asyncio.Future[Any]


class _JobQueues:
    """A queue of jobs for each provider: round robin between providers, smallest body first within one."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, list[tuple[int, int, _VerificationJob]]] = {}
        self._numbers = count()

    def push(self, provider: Hashable, size: int, job: _VerificationJob) -> None:
        heappush(self._queues.setdefault(provider, []), (size, next(self._numbers), job))

    def pop(self) -> _VerificationJob | None:
        for provider, queue in self._queues.items():
            job = heappop(queue)[2]
            del self._queues[provider]
            if queue:
                self._queues[provider] = queue  # at the end of the round
            return job
        return None


class VerificationThread:
    """Runs jobs in one thread, alternating between verified and unverified bodies.

    After a job that fails it idles for as long as that took: decoding JSON holds the GIL, and bodies of strangers, one
    after the other, would leave the event loop a read of a socket between two of them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mailglass-verifier")
        self._running: Future[Any] | None = None
        self._started_at = self._idle_until = 0.0
        self._next, self._other = _JobQueues(), _JobQueues()
        self._verified, self._unverified = self._next, self._other

    def run(self, provider: str, size: int, *, verified: bool, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """Enqueue a job and return the future of its result; a job that is cancelled while queued does not run."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        (self._verified if verified else self._unverified).push(provider, size, _VerificationJob(job, future))
        self._start_next()
        return future

    def _start_next(self, after_iterations: int = 0) -> None:
        if after_iterations:
            asyncio.get_running_loop().call_soon(self._start_next, after_iterations - 1)
            return
        if (idle_seconds := self._idle_until - time.monotonic()) > 0:
            asyncio.get_running_loop().call_later(idle_seconds, self._start_next)
            return
        while (self._running is None or self._running.done()) and (job := self._pop()):
            if not job.future.done():
                self._running = self._thread.submit(job.function)
                self._started_at = time.monotonic()
                self._running.add_done_callback(lambda future, job=job: self._schedule_finish(job, future))  # type: ignore[misc]

    def _pop(self) -> _VerificationJob | None:
        if job := self._next.pop():
            self._next, self._other = self._other, self._next
            return job
        return self._other.pop()

    def _schedule_finish(self, job: _VerificationJob, future: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop was closed
            job.future.get_loop().call_soon_threadsafe(self._finish, job, future)

    def _finish(self, job: _VerificationJob, future: Future[Any]) -> None:
        error = future.exception()
        if not job.future.done():
            if error:
                job.future.set_exception(error)
            else:
                job.future.set_result(future.result())
        if error:
            now = time.monotonic()
            self._idle_until = now + (now - self._started_at)
        self._start_next(IDLE_ITERATIONS)
