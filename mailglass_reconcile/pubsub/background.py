"""The one background thread of this process: it runs the work after commits, so that no caller waits for it.

Queues are bounded; their entries are lost if the process is killed. The thread starts with the first entry and never
keeps the process alive. After a second without work, and on `flush`, it closes its connections. A forked child starts
with empty queues and without a thread.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - the thread may import it for others when Python ends, which is too late
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Seconds without work after which connections are closed."""
FLUSH_SECONDS = 1.0
RETRY_SECONDS = 0.1
"""Seconds until an entry is processed again."""

T = TypeVar("T")


class Queue(Generic[T]):
    """Entries that wait for the thread, in order; each is enqueued once, by identity, until it is processed."""

    def __init__(
        self,
        process: Callable[[Sequence[T]], Iterable[T]],
        *,
        limit: int,
        batch: int,
        size: Callable[[T], int],
        delay: float = 0.0,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Create an empty queue.

        Args:
            process: Processes some entries in the thread, and returns those to process again in a moment.
            limit: The size that all entries may have together.
            batch: The size up to which entries are processed together.
            size: The size of an entry.
            delay: Seconds for which the first entry waits for others, so that they share one round trip.
            close: Closes the connections that *process* keeps.
        """
        self._process, self._limit, self._batch, self._delay, self.close = process, limit, batch, delay, close
        self._size_of = size
        self.clear()
        _queues.append(self)

    def put(self, entry: T) -> bool:
        """Enqueue an entry, and return False if the queue is full or no thread can be started.

        An empty queue takes an entry of any size.
        """
        with _thread.condition:
            if entry in self._waiting or entry in self._delayed or entry in self._in_flight:
                return True
            size = self._size_of(entry)
            if (self._size and self._size + size > self._limit) or not _thread.start():
                return False
            if not self._waiting:
                self._waiting_since = time.monotonic()
                _thread.condition.notify_all()
            self._waiting[entry] = size
            self._size += size
            return True

    def put_all(self, entries: Iterable[T]) -> list[T]:
        """Enqueue entries so that they are processed together, and return those that do not fit."""
        with _thread.condition:
            return [entry for entry in entries if not self.put(entry)]

    @property
    def has_entries(self) -> bool:
        """True if an entry waits or is in flight."""
        return self._size > 0

    @property
    def due_at(self) -> float | None:
        """The time of the next entry to process, by the monotonic clock; None if there is none."""
        if self._waiting:
            return self._waiting_since + (0.0 if _thread.is_flushing else self._delay)
        return next(iter(self._delayed.values()))[1] if self._delayed else None

    def claim_batch(self) -> None:
        """Move the entries to process next in flight."""
        now = time.monotonic()
        for entry in [entry for entry, (_, due_at) in self._delayed.items() if due_at <= now]:
            self._waiting[entry] = self._delayed.pop(entry)[0]
        size = 0
        for entry in list(islice(self._waiting, self._batch)):
            size += self._waiting[entry]
            if self._in_flight and size > self._batch:
                break
            self._in_flight[entry] = self._waiting.pop(entry)

    def process(self) -> None:
        """Process the entries in flight; delay those that must be processed again."""
        entries_to_retry: Iterable[T] = ()
        with _log_errors():
            entries_to_retry = self._process(list(self._in_flight))
        with _thread.condition:
            due_at = time.monotonic() + RETRY_SECONDS
            for entry in entries_to_retry:
                self._delayed[entry] = self._in_flight.pop(entry), due_at
            self._size -= sum(self._in_flight.values())
            self._in_flight.clear()

    def clear(self) -> None:
        """Forget all entries, as a forked child does."""
        self._waiting: dict[T, int] = {}
        self._delayed: dict[T, tuple[int, float]] = {}
        self._in_flight: dict[T, int] = {}
        self._waiting_since = 0.0
        self._size: int = 0


@contextmanager
def _log_errors() -> Iterator[None]:
    """Log an error of the block by its class, because a message may quote a value; the thread must go on."""
    try:
        yield
    except BaseException as error:
        logger.error("the background thread could not do its work: %s", type(error).__name__)


class _Thread:
    """The thread, and the condition that it waits for."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self._started = False
        self._is_working = False
        self._may_be_connected = False
        self._flushes = 0
        self.ident: int | None = None

    @property
    def is_flushing(self) -> bool:
        """True while a caller waits until all entries are processed."""
        return self._flushes > 0

    def start(self) -> bool:
        """Start the thread unless it runs; return False if it cannot be started. The caller holds the condition."""
        if not self._started:
            try:
                threading.Thread(target=self._run, daemon=True, name="mailglass after commit").start()
            except RuntimeError:  # no thread is left, or the interpreter is ending
                return False
            self._started = True
            _flush_at_exit()
        return True

    def flush(self, seconds: float) -> bool:
        """Wait until no entry is left and no connection is open; return False after a timeout."""
        with self.condition:
            self._flushes += 1
            self.condition.notify_all()
            try:
                return self.condition.wait_for(self._is_idle, seconds)
            finally:
                self._flushes -= 1

    def _is_idle(self) -> bool:
        return not (self._is_working or self._may_be_connected or any(queue.has_entries for queue in _queues))

    def _run(self) -> None:
        self.ident = threading.get_ident()
        while True:
            queue = self._wait_for_batch()
            if queue is None:
                for idle_queue in _queues:
                    with _log_errors():
                        idle_queue.close()
                self._may_be_connected = False
                continue
            queue.process()

    def _wait_for_batch(self) -> Queue[Any] | None:
        """Wait for due entries and return their queue, each queue in turn, or None if connections are to be closed."""
        idle_since = time.monotonic()
        with self.condition:
            self._is_working = False
            self.condition.notify_all()
            while True:
                now = time.monotonic()
                due = {queue: due_at for queue in _queues if (due_at := queue.due_at) is not None}
                queue = next((queue for queue, due_at in due.items() if due_at <= now), None)
                if queue is not None:
                    _queues.remove(queue)
                    _queues.append(queue)
                    queue.claim_batch()
                    self._is_working = self._may_be_connected = True
                    return queue
                closes_at = idle_since + (0.0 if self.is_flushing and not due else IDLE_SECONDS)
                if self._may_be_connected and now >= closes_at:
                    self._is_working = True
                    return None
                until = [*due.values(), *([closes_at] if self._may_be_connected else [])]
                self.condition.wait(min(until) - now if until else None)


_queues: list[Queue[Any]] = []
_thread = _Thread()


def is_background_thread() -> bool:
    """Return True in the background thread."""
    return threading.get_ident() == _thread.ident


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds, which the thread may fulfil; return False after *seconds*."""
    with _thread.condition:
        return _thread.condition.wait_for(condition, seconds)


def flush() -> bool:
    """Wait until the background thread has done what your commits left to do, at most a second.

    Call this before a process is frozen or killed. Afterwards no connection of the thread is open.

    Returns:
        True if nothing is left to do.
    """
    return _thread.flush(FLUSH_SECONDS)


def _flush_at_exit() -> None:
    """Flush when a child of multiprocessing or of a Celery worker ends, which runs no handlers of `atexit`."""
    if "multiprocessing.util" in sys.modules:
        sys.modules["multiprocessing.util"].Finalize(None, flush, exitpriority=0)
    if "celery.signals" in sys.modules:
        shutdown = sys.modules["celery.signals"].worker_process_shutdown
        shutdown.connect(_flush_celery_child, dispatch_uid="mailglass_reconcile.flush")


def _flush_celery_child(**_signal: Any) -> None:
    flush()


_parents: list[object] = []
"""The parents' threads: a forked child keeps them, because collecting them would use the parent's connections."""


def _reset_in_child() -> None:
    global _thread  # noqa: PLW0603 - one for each process
    _parents.append(_thread)
    _thread = _Thread()
    for queue in _queues:
        queue.clear()


os.register_at_fork(after_in_child=_reset_in_child)
atexit.register(flush)
