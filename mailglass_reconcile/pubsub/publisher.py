"""Publishing that holds up neither a sweep nor a request if Redis is slow or down.

Publishing is best effort. A message that Redis did not take is counted and never sent again, so that no subscriber
gets one twice. Success means only that Redis took it, not that anybody subscribes.

One thread of this process publishes for one server: a connection that hangs, a slow name server or an answer in
many pieces keeps that thread waiting and nobody else. What several callers publish meanwhile goes out in one call.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple
from weakref import WeakKeyDictionary, finalize

from mailglass_reconcile import telemetry
from mailglass_reconcile.pubsub.breaker import Breaker, PausedError
from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.pubsub.client import TIMEOUT_SECONDS, fail_fast_client, reason
from mailglass_reconcile.pubsub.library import redis

logger = logging.getLogger(__name__)

HEALTHY_SECONDS = 0.08
"""An answer within this time is not slow, even from another region."""

SLOW_SHARE = 0.1
"""Slow answers may take this share of a sweep's time, or a second if that is more."""

CHUNK_LINKS = 500
"""Links per call: a script of a thousand PUBLISH holds Redis for about 2 ms."""

MOST_WAITING = 10_000
"""Links that `publish_soon` keeps in memory for a server, some megabytes; what does not fit is dropped."""

GATHER_SECONDS = 0.005
"""What callers publish within this time, who do not wait for it, goes out in one call."""

WARN_SECONDS = 60.0
"""A server that is down is logged so often at most."""

RIGHTS = "the commands EVAL and PUBLISH (before Redis 7 also INFO) on the channels mailglass:events:*"

_PUBLISH = r"""
for channel, delivery, payload in string.gmatch(ARGV[1], '([^\n]*)\n([^\n]*)\n([^\n]*)\n') do
  redis.call('PUBLISH', channel, payload)
  redis.call('PUBLISH', channel .. ':' .. delivery, payload)
end
"""

# A replica accepts PUBLISH, answers OK and reaches only its own clients; a master may become one at any moment.
_PUBLISH_ON_MASTER = (
    r"""
local replication = redis.pcall('INFO', 'replication')
if type(replication) ~= 'string' then return redis.error_reply('NOINFO this user may not use INFO') end
if not string.find(replication, 'role:master', 1, true) then
  return redis.error_reply('READONLY a replica reaches only its own clients')
end
"""
    + _PUBLISH
)

# For a user without INFO: since Redis 7, a replica refuses a script with a header that does not say "no-writes".
_PUBLISH_IF_WRITABLE = "#!lua flags=allow-oom" + _PUBLISH

Message = tuple[str, str, str]
"""A tenant id, a delivery id, and the JSON, in one line, that goes to the channels of both."""


class Published(NamedTuple):
    """How many messages Redis took, and how many it did not; two per link."""

    published: int = 0
    failed: int = 0


class Publisher:
    """Publishes the messages of one sweep, or of one call, which does not wait for it; making one costs nothing.

    A sweep waits a second in all for a Redis that does not answer. One that answers, but slowly, may take a tenth of
    the sweep's time. After a failure, nothing in this process asks that server again for five seconds.
    """

    def __init__(self, client: redis.Redis) -> None:
        """Use the server of *client*, whose own timeouts and retries do not count; nothing connects yet."""
        self._outbox = _outbox_of(client)
        self.next_sweep()

    def next_sweep(self) -> None:
        """Begin with another sweep, which has all of its time for Redis."""
        self._began = time.monotonic()
        self._waited = self._slow = 0.0

    def publish(self, messages: Sequence[Message]) -> Published:
        """Publish *messages*, and return how many Redis took; raises nothing that a Redis can cause."""
        taken = sum(2 * len(chunk) for chunk in _chunks(messages) if self._send(chunk))
        outcome = Published(taken, 2 * len(messages) - taken)
        telemetry.count_messages(outcome._asdict())
        return outcome

    def publish_soon(self, messages: Sequence[Message]) -> None:
        """Publish *messages* without waiting for it, as after an application's commit; what does not fit is dropped.

        At the end of the process they have a second to leave.
        """
        for chunk in _chunks(messages):
            try:
                self._outbox.put(chunk, most=MOST_WAITING).add_done_callback(partial(_count, 2 * len(chunk)))
            except OSError:
                telemetry.count_messages({"failed": 2 * len(chunk)})

    def _send(self, chunk: Sequence[Message]) -> bool:
        if self._waited >= TIMEOUT_SECONDS or self._is_too_slow():
            return False
        began = time.monotonic()
        try:
            seconds = self._outbox.send(chunk, TIMEOUT_SECONDS - self._waited)
        except (redis.RedisError, OSError):
            self._waited += time.monotonic() - began
            return False
        if seconds > HEALTHY_SECONDS:
            self._slow += seconds
        if self._is_too_slow():
            self._outbox.warn("answers too slowly")
        return True

    def _is_too_slow(self) -> bool:
        return self._slow > max(TIMEOUT_SECONDS, SLOW_SHARE * (time.monotonic() - self._began))


def _chunks(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    for start in range(0, len(messages), CHUNK_LINKS):
        yield messages[start : start + CHUNK_LINKS]


class _Entry(Future[float]):
    """Some links that wait for being published; the result is how many seconds the call took."""

    def __init__(self, chunk: Sequence[Message], soon: bool) -> None:
        super().__init__()
        self.chunk = chunk
        self.soon = soon


def _lines(messages: Iterable[Message]) -> str:
    """Return *messages* as one argument, three lines a link: none of the three can hold the end of a line."""
    channels: dict[str, str] = {}
    lines = []
    for tenant_id, delivery_id, payload in messages:
        if tenant_id not in channels:
            channels[tenant_id] = events_channel(tenant_id)
        lines.append(f"{channels[tenant_id]}\n{delivery_id}\n{payload}\n")
    return "".join(lines)


def _count(number: int, entry: Future[float]) -> None:
    telemetry.count_messages({"published" if entry.exception() is None else "failed": number})


class _Outbox:
    """What this process publishes on one server, in order, and the thread that does it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = fail_fast_client(client)
        self._breaker = Breaker()
        self._script = _PUBLISH_ON_MASTER
        self._warned_at = -WARN_SECONDS
        self.reset()

    def reset(self) -> None:
        """Begin without a thread and with nothing to do, as a forked child must: its parent has both."""
        self._lock = threading.Lock()
        self._waiting = 0
        self._entries: SimpleQueue[tuple[_Outbox, _Entry] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def send(self, chunk: Sequence[Message], seconds: float) -> float:
        """Publish *chunk*, and return how many seconds the call took.

        Raises:
            RedisError: It was refused; also OSError if it was not answered within *seconds*.
        """
        entry = self.put(chunk)
        try:
            return entry.result(seconds)
        except TimeoutError as error:
            if not entry.done():  # otherwise the thread's own timeout has been noted
                entry.cancel()
                self._breaker.fail(seconds)
                self.warn(reason(error, RIGHTS))
            raise

    def put(self, chunk: Sequence[Message], most: int | None = None) -> _Entry:
        """Let the thread publish *chunk*, unless *most* links wait already.

        Raises:
            OSError: Too many wait, the server has failed a moment ago, or there is no thread.
        """
        self._breaker.require()
        entry = _Entry(chunk, soon=most is not None)
        with self._lock:
            if most is not None and self._waiting + len(entry.chunk) > most:
                raise BlockingIOError("too many broadcasts are waiting")
            if self._thread is None:
                self._thread = self._start()
            self._waiting += len(entry.chunk)
            self._entries.put((self, entry))
        return entry

    def flush(self, seconds: float) -> None:
        """Wait until what waits or is on its way now is published or has failed, at most so many *seconds*."""
        if self._waiting:
            try:
                self.put(()).result(seconds)
            except (redis.RedisError, OSError):
                return

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=_publish, args=(self._entries,), daemon=True, name="mailglass publisher")
        try:
            thread.start()
        except RuntimeError as error:  # none left, or the interpreter is ending
            raise BlockingIOError(str(error)) from None
        finalize(self, self._entries.put, None).atexit = False
        return thread

    def publish(self, entries: Sequence[_Entry]) -> None:
        """Publish *entries* in one call, except those that nobody waits for any more; runs in the thread."""
        current = [entry for entry in entries if entry.set_running_or_notify_cancel()]
        began, failing = time.monotonic(), self._breaker.failing
        try:
            if lines := _lines(message for entry in current for message in entry.chunk):
                with self._breaker.call():
                    self._eval(lines)
        except BaseException as error:  # raised where somebody waits
            for entry in current:
                entry.set_exception(error)
            if not isinstance(error, PausedError):
                self.warn(reason(error, RIGHTS))
        else:
            for entry in current:
                entry.set_result(time.monotonic() - began)
            if failing:  # the next failure is news
                self._warned_at = -WARN_SECONDS
        finally:  # not before: a process must not end while the thread holds a lock of the client
            with self._lock:
                self._waiting -= sum(len(entry.chunk) for entry in entries)

    def _eval(self, lines: str) -> None:
        try:
            self._client.eval(self._script, 0, lines)
        except redis.RedisError as error:
            if not str(error).startswith("NOINFO"):  # which comes before anything is published
                raise
            self._script = _PUBLISH_IF_WRITABLE
            self._client.eval(self._script, 0, lines)

    def warn(self, cause: str) -> None:
        """Log once in a while that broadcasts are lost, and why."""
        if time.monotonic() - self._warned_at >= WARN_SECONDS:
            self._warned_at = time.monotonic()
            text = "cannot publish to MAILGLASS_REDIS_URL (%s); links are unaffected, their broadcasts are lost"
            logger.warning(text, cause)


def _publish(waiting: SimpleQueue[tuple[_Outbox, _Entry] | None]) -> None:
    """Publish what is put into the queue until None is, as much in one call as has come together."""
    gathering = threading.Event()  # which nothing sets
    while (first := waiting.get()) is not None:
        outbox, entries = first[0], [first[1]]
        if entries[0].soon:
            gathering.wait(GATHER_SECONDS)
        try:
            while sum(len(entry.chunk) for entry in entries) < CHUNK_LINKS:
                entries.append(waiting.get_nowait()[1])  # type: ignore[index] # None is last, when nothing waits
        except Empty:
            pass
        outbox.publish(entries)
        del first, outbox, entries  # so that an outbox without a client ends, and this thread with it


_outboxes: WeakKeyDictionary[redis.Redis, _Outbox] = WeakKeyDictionary()


def _outbox_of(client: redis.Redis) -> _Outbox:
    return _outboxes.get(client) or _outboxes.setdefault(client, _Outbox(client))


def _reset() -> None:
    for outbox in list(_outboxes.values()):
        outbox.reset()


def flush() -> None:
    """Wait, a second at most, until what `publish_soon` has taken in this process is published or has failed."""
    until = time.monotonic() + TIMEOUT_SECONDS
    for outbox in list(_outboxes.values()):
        outbox.flush(max(0.0, until - time.monotonic()))


os.register_at_fork(after_in_child=_reset)
atexit.register(flush)
