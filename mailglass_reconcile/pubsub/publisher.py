"""Publishing that holds up neither a sweep nor a request if Redis is slow or down.

Publishing is best effort. A message that Redis did not take is counted and never sent again, so that no subscriber
gets one twice. Success means only that Redis took it, not that anybody subscribes.

One thread of this process publishes: a connection that hangs, a slow name server or an answer in many pieces keeps
only that thread waiting. What several callers publish meanwhile goes out together.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from itertools import groupby, islice
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mailglass_reconcile import telemetry
from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.pubsub.client import TIMEOUT_SECONDS, reason
from mailglass_reconcile.pubsub.library import redis

logger = logging.getLogger(__name__)

REST_SECONDS = 5.0
"""After a failure, this process leaves the server alone for so long."""

HEALTHY_SECONDS = 0.08
"""An answer within this time is not slow, even from another region."""

SLOW_SHARE = 0.1
"""Slow answers may take this share of a sweep's time, or a second if that is more."""

CHUNK_LINKS = 500
"""Links per round trip: a thousand PUBLISH take Redis about 2 ms."""

MOST_WAITING = 10_000
"""Links that `publish_soon` keeps in memory, some megabytes; what does not fit is dropped."""

WARN_SECONDS = 60.0
"""A server that is down is logged so often at most."""

NEVER = float("-inf")

RIGHTS = "the command PUBLISH on the channels mailglass:events:*"

Message = tuple[str, str, str]
"""A tenant id, a delivery id, and the JSON that goes to the channels of both."""


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
        self._server = _servers.get(client) or _servers.setdefault(client, _Server())
        self._client = client
        self.next_sweep()

    def next_sweep(self) -> None:
        """Begin with another sweep, which has all of its time for Redis."""
        self._began = time.monotonic()
        self._waited = self._slow = 0.0

    def publish(self, messages: Sequence[Message]) -> Published:
        """Publish *messages*, and return how many Redis took; raises nothing that a Redis can cause."""
        taken = sum(self._send(chunk) for chunk in _chunks(messages))
        outcome = Published(taken, 2 * len(messages) - taken)
        telemetry.count_messages(outcome._asdict())
        return outcome

    def publish_soon(self, messages: Sequence[Message]) -> None:
        """Publish *messages* without waiting for it, as after an application's commit; what does not fit is dropped.

        At the end of the process they have a second to leave.
        """
        for chunk in _chunks(messages):
            entry = _Entry(self._client, self._server, chunk)
            entry.add_done_callback(_count)
            _outbox.put(entry, most=MOST_WAITING)

    def _send(self, chunk: Sequence[Message]) -> int:
        """Publish *chunk*, and return how many of its messages Redis took."""
        if self._waited >= TIMEOUT_SECONDS or self._is_too_slow():
            return 0
        entry, began = _Entry(self._client, self._server, chunk), time.monotonic()
        _outbox.put(entry)
        try:
            sent = entry.result(TIMEOUT_SECONDS - self._waited)
        except (redis.RedisError, OSError) as error:
            if entry.cancel() or entry.running():  # the client is more patient than this sweep
                self._server.fail(error)
            self._waited += time.monotonic() - began
            return 0
        if sent.seconds > HEALTHY_SECONDS:
            self._slow += sent.seconds
        if self._is_too_slow():
            self._server.warn("it answers too slowly")
        return sent.taken

    def _is_too_slow(self) -> bool:
        return self._slow > max(TIMEOUT_SECONDS, SLOW_SHARE * (time.monotonic() - self._began))


def _chunks(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    for start in range(0, len(messages), CHUNK_LINKS):
        yield messages[start : start + CHUNK_LINKS]


class _RestingError(OSError):
    """The server has failed a moment ago and is not asked again yet."""


class _Server:
    """What this process remembers of one client's server."""

    def __init__(self) -> None:
        self._rests_until = self._warned_at = NEVER

    def require(self) -> None:
        if time.monotonic() < self._rests_until:
            raise _RestingError("Redis failed a moment ago")

    def publish(self, client: redis.Redis, messages: Iterable[Message]) -> tuple[float, Iterator[bool]]:
        """Publish two messages for each link, in one round trip.

        Return how many seconds the first answer took, and of each message in turn whether it was taken.

        redis-py's own pipeline would send all of them again after a lost answer, if the client retries.
        """
        commands = [
            ("PUBLISH", channel, payload)
            for tenant_id, delivery_id, payload in messages
            for channel in (events_channel(tenant_id), events_channel(tenant_id, delivery_id))
        ]
        pool: Any = client.connection_pool
        connection = pool.get_connection(*_command_of(pool.__class__))
        try:
            packed, began = connection.pack_commands(commands), time.monotonic()
            connection.send_packed_command(packed)
            refusals = [_refusal(connection)]
            seconds = time.monotonic() - began
            refusals += [_refusal(connection) for _ in commands[1:]]
        except BaseException:  # the rest of the answers belongs to nothing else
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        self._answered(next(filter(None, refusals), None))
        return seconds, (refusal is None for refusal in refusals)

    def fail(self, error: Exception) -> None:
        """Let the server rest, and log why."""
        self._rests_until = time.monotonic() + REST_SECONDS
        self.warn(reason(error, RIGHTS))

    def _answered(self, refusal: Exception | None) -> None:
        if self._rests_until > NEVER:  # it is back, and the next failure is news
            self._rests_until = self._warned_at = NEVER
        if refusal is not None:
            self.warn(reason(refusal, RIGHTS))

    def warn(self, cause: str) -> None:
        """Log once in a while that broadcasts are lost, and why."""
        if time.monotonic() - self._warned_at >= WARN_SECONDS:
            self._warned_at = time.monotonic()
            text = "cannot publish to MAILGLASS_REDIS_URL (%s); links are unaffected, their broadcasts are lost"
            logger.warning(text, cause)


@cache
def _command_of(pool: type) -> tuple[str, ...]:
    """Return the command that a pool asks for: redis-py before 5.3 requires one, and later versions warn of it."""
    wanted = inspect.signature(pool.get_connection).parameters.get("command_name")  # type: ignore[attr-defined]
    return ("PUBLISH",) if wanted and wanted.default is inspect.Parameter.empty else ()


def _refusal(connection: Any) -> Exception | None:
    """Return the error in the next answer, if it is one."""
    try:
        connection.read_response()
    except redis.ResponseError as error:
        return error
    return None


_servers: WeakKeyDictionary[redis.Redis, _Server] = WeakKeyDictionary()


class _Sent(NamedTuple):
    """How many messages Redis took, and how many seconds its first answer took."""

    taken: int
    seconds: float


class _Entry(Future[_Sent]):
    """Some links that wait for being published."""

    def __init__(self, client: redis.Redis, server: _Server, chunk: Sequence[Message]) -> None:
        super().__init__()
        self.client = client
        self.server = server
        self.chunk = chunk


def _count(entry: Future[_Sent]) -> None:
    assert isinstance(entry, _Entry)  # noqa: S101 - for type checkers
    taken = 0 if entry.cancelled() or entry.exception() else entry.result().taken
    failed = 2 * len(entry.chunk) - taken
    telemetry.count_messages({name: n for name, n in (("published", taken), ("failed", failed)) if n})


class _Outbox:
    """What this process publishes, in order, and the thread that does it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._entries: SimpleQueue[_Entry] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, entry: _Entry, most: int | None = None) -> None:
        """Let the thread publish *entry*; it fails if *most* links would wait, or the server rests."""
        try:
            entry.server.require()
            with self._lock:
                if most is not None and self._waiting + len(entry.chunk) > most:
                    raise BlockingIOError("too many broadcasts are waiting")
                if self._thread is None:
                    thread = threading.Thread(target=self._run, daemon=True, name="mailglass publisher")
                    thread.start()
                    self._thread = thread
                self._waiting += len(entry.chunk)
                self._entries.put(entry)
        except OSError as error:
            entry.set_exception(error)
        except RuntimeError as error:  # no thread is left, or the interpreter is ending
            entry.set_exception(BlockingIOError(str(error)))

    def flush(self, seconds: float) -> None:
        """Wait until what waits or is on its way now is published or has failed, at most so many *seconds*."""
        until = time.monotonic() + seconds
        while self._waiting and time.monotonic() < until:
            time.sleep(0.001)

    def _run(self) -> None:
        """Publish what is put into the queue, together what has come together."""
        while True:
            entries = [self._entries.get()]
            try:
                while sum(len(entry.chunk) for entry in entries) < CHUNK_LINKS:
                    entries.append(self._entries.get_nowait())
            except Empty:
                pass
            for server, group in groupby(entries, attrgetter("server")):
                self._publish(server, list(group))
            del entries, group  # a client that nothing else has can go

    def _publish(self, server: _Server, entries: Sequence[_Entry]) -> None:
        """Publish *entries* in one round trip, except those that nothing waits for any more."""
        current = [entry for entry in entries if entry.set_running_or_notify_cancel()]
        seconds, taken = 0.0, iter(list[bool]())
        try:
            if current:
                server.require()
                seconds, taken = server.publish(current[0].client, [one for entry in current for one in entry.chunk])
        except Exception as error:  # raised in the thread that waits
            if not isinstance(error, _RestingError):
                server.fail(error)
            for entry in current:
                entry.set_exception(error)
        else:
            for entry in current:
                entry.set_result(_Sent(sum(islice(taken, 2 * len(entry.chunk))), seconds))
        finally:  # not before: a process must not end while the thread holds a lock of the client
            with self._lock:
                self._waiting -= sum(len(entry.chunk) for entry in entries)


_outbox = _Outbox()


def flush() -> None:
    """Wait, a second at most, until what `publish_soon` has taken in this process is published or has failed."""
    _outbox.flush(TIMEOUT_SECONDS)


def _begin_again() -> None:
    """Begin without a thread and with nothing to do, as a forked child must: its parent has both."""
    global _outbox  # noqa: PLW0603 - one for each process
    _outbox = _Outbox()


os.register_at_fork(after_in_child=_begin_again)
atexit.register(flush)
