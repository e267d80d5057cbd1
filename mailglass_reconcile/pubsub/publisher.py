"""Publishing over Redis pub/sub, which delays neither a sweep nor a request if Redis is slow or down.

Publishing is best effort. A message that Redis did not accept is counted and never sent again, so that no subscriber
gets one twice. Success means only that Redis accepted it, not that anybody subscribes.

Sweeps and calls enqueue messages, and the background thread of this process publishes them: a connection that hangs or
a slow name server delays only that thread. Messages that are enqueued meanwhile are sent together.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mailglass_reconcile import telemetry
from mailglass_reconcile.pubsub import background
from mailglass_reconcile.pubsub.background import Queue
from mailglass_reconcile.pubsub.channels import events_channel
from mailglass_reconcile.pubsub.client import TIMEOUT_SECONDS, reason
from mailglass_reconcile.pubsub.lazy_redis import redis

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 5.0
"""Seconds without another attempt after a server has failed."""

CHUNK_LINKS = 500
"""Links per round trip: a thousand PUBLISH take Redis about 2 ms."""

WRITE_LINKS = 50
"""Links per write, about 40 kB, which must end within the client's timeout."""

MAX_WAITING_LINKS = 10_000
"""Links whose messages wait in memory at most, some megabytes; further ones are dropped."""

WARN_SECONDS = 60.0
"""Seconds between two log lines about the same server."""

NEVER = float("-inf")

PERMISSIONS = "the command PUBLISH on the channels mailglass:events:*"

Message = tuple[str, str, str]
"""A tenant id, a delivery id, and the JSON that goes to the channels of both."""


class Published(NamedTuple):
    """The numbers of messages that Redis accepted and did not accept; two per link."""

    published: int = 0
    failed: int = 0


class Publisher:
    """Publishes the messages of one sweep or of some calls, in the background; creating one costs nothing.

    Messages that do not fit into the queue, or that a server does not accept, are dropped and counted. After a failure,
    this process does not use that server for five seconds.
    """

    def __init__(
        self, client: redis.Redis, *, is_expected: bool = True, backoff_seconds: float = BACKOFF_SECONDS
    ) -> None:
        """Create a publisher; the first one of a client decides about its server.

        If a server is not expected and has never replied, its messages do not count as failed: nobody waits for them.
        """
        self.client = client
        self.server = _servers.get(client) or _servers.setdefault(client, _ServerState(is_expected, backoff_seconds))
        self._lock = threading.Lock()
        self._enqueued = self._published = self._completed = 0

    def publish(self, messages: Sequence[Message]) -> None:
        """Enqueue *messages*, and return immediately; the background thread itself publishes them at once."""
        for chunk in _chunks(messages, CHUNK_LINKS):
            self._enqueued += 2 * len(chunk)
            if background.is_background_thread():
                _publish_to(self.server, [_Chunk(self, chunk)])
            elif self.server.is_backing_off:
                self.count_published(chunk, 0)
            elif not _queue.put(_Chunk(self, chunk)):
                self.server.warn("it answers too slowly")
                self.count_published(chunk, 0)

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> Published:
        """Wait at most so many seconds until all messages are published; return the numbers accepted and failed."""
        before = self._completed
        is_done = background.wait_for(lambda: self._completed == self._enqueued, seconds)
        if not is_done and self._completed == before:  # the client's timeout is longer than a sweep waits
            self.server.back_off(TimeoutError())
        return Published(self._published, self._count_failed(self._enqueued, self._published))

    def count_published(self, chunk: Sequence[Message], published: int) -> None:
        """Count the messages of a chunk, of which Redis accepted *published*."""
        with self._lock:
            self._published += published
            self._completed += 2 * len(chunk)
        failed = self._count_failed(2 * len(chunk), published)
        telemetry.count_messages({name: n for name, n in (("published", published), ("failed", failed)) if n})

    def _count_failed(self, messages: int, published: int) -> int:
        return messages - published if self.server.is_expected else 0


def _chunks(messages: Sequence[Message], links: int) -> Iterator[Sequence[Message]]:
    for start in range(0, len(messages), links):
        yield messages[start : start + links]


class _ServerState:
    """The state of one client's server, as this process knows it."""

    def __init__(self, is_expected: bool, backoff_seconds: float) -> None:
        self.is_expected = is_expected
        self._backoff_seconds = backoff_seconds
        self._backoff_until = self._warned_at = NEVER

    @property
    def is_backing_off(self) -> bool:
        """True if the server failed a moment ago and is not used yet."""
        return time.monotonic() < self._backoff_until

    def publish(self, client: redis.Redis, messages: Sequence[Message]) -> list[bool]:
        """Publish two messages for each link, in one round trip, and return True for each that Redis accepted.

        redis-py's own pipeline would send all of them again after a lost reply, if the client retries.
        """
        pool: Any = client.connection_pool
        connection = pool.get_connection(*_connection_arguments(pool.__class__))
        try:
            connection.send_packed_command([_pack(chunk) for chunk in _chunks(messages, WRITE_LINKS)])
            errors = [_read_error(connection) for _ in range(2 * len(messages))]
        finally:
            pool.release(connection)
        self._handle_reply(next(filter(None, errors), None))
        return [error is None for error in errors]

    def back_off(self, error: Exception) -> None:
        """Do not use the server for some seconds, and log why."""
        self._backoff_until = time.monotonic() + self._backoff_seconds
        self.warn(reason(error, PERMISSIONS))

    def _handle_reply(self, error: Exception | None) -> None:
        self.is_expected = True
        if self._backoff_until > NEVER:  # it is back, and the next failure is news
            self._backoff_until = self._warned_at = NEVER
        if error is not None:
            self.warn(reason(error, PERMISSIONS))

    def warn(self, cause: str) -> None:
        """Log once in a while that broadcasts are lost, and why."""
        if time.monotonic() - self._warned_at >= WARN_SECONDS:
            self._warned_at = time.monotonic()
            text = "cannot publish to MAILGLASS_REDIS_URL (%s); links are unaffected, their broadcasts are lost"
            logger.log(logging.WARNING if self.is_expected else logging.INFO, text, cause)


def _pack(messages: Iterable[Message]) -> bytes:
    """Return the commands that publish two messages for each link, in Redis's protocol.

    redis-py packs two to three times slower, and writes every 6 kB, each time giving away the GIL.
    """
    commands = []
    for tenant_id, delivery_id, text in messages:
        payload = text.encode()
        for channel in (events_channel(tenant_id).encode(), events_channel(tenant_id, delivery_id).encode()):
            commands.append(_PUBLISH % (len(channel), channel, len(payload), payload))
    return b"".join(commands)


_PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


@cache
def _connection_arguments(pool: type) -> tuple[str, ...]:
    """Return the arguments for a pool's `get_connection`: redis-py before 5.3 requires a command, later ones warn."""
    parameter = inspect.signature(pool.get_connection).parameters.get("command_name")  # type: ignore[attr-defined]
    return ("PUBLISH",) if parameter and parameter.default is inspect.Parameter.empty else ()


def _read_error(connection: Any) -> Exception | None:
    """Read the next reply, and return it if it is an error."""
    try:
        connection.read_response(disconnect_on_error=True)
    except redis.ResponseError as error:
        return error
    return None


_servers: WeakKeyDictionary[redis.Redis, _ServerState] = WeakKeyDictionary()


class _Chunk:
    """The messages of some links, waiting to be published."""

    def __init__(self, publisher: Publisher, messages: Sequence[Message]) -> None:
        self.publisher = publisher
        self.server = publisher.server
        self.messages = messages


def _publish(chunks: Sequence[_Chunk]) -> Sequence[_Chunk]:
    """Publish chunks, those of one server together; none is ever published again."""
    for server, group in groupby(chunks, attrgetter("server")):
        _publish_to(server, list(group))
    return ()


def _publish_to(server: _ServerState, chunks: Sequence[_Chunk]) -> None:
    accepted: list[bool] = []
    if not server.is_backing_off:
        try:
            client = chunks[0].publisher.client
            accepted = server.publish(client, [message for chunk in chunks for message in chunk.messages])
        except Exception as error:  # a driver may raise anything
            server.back_off(error)
    start = 0
    for chunk in chunks:
        end = start + 2 * len(chunk.messages)
        chunk.publisher.count_published(chunk.messages, sum(accepted[start:end]))
        start = end


_queue = Queue(_publish, limit=MAX_WAITING_LINKS, batch=CHUNK_LINKS, size=lambda chunk: len(chunk.messages))
