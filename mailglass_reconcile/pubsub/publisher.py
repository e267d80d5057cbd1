"""Publishing over Redis pub/sub, which delays neither a sweep nor a request if Redis is slow or down.

Publishing is best effort. A message that Redis did not take is counted and never sent again, so that no subscriber
gets one twice. Success means only that Redis took it, not that anybody subscribes.

The background thread of this process publishes what sweeps and calls enqueue: a connection that hangs or a slow name
server delays only that thread. Messages that are enqueued meanwhile are sent together.
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

REST_SECONDS = 5.0
"""After a failure, this process leaves the server alone for so long."""

CHUNK_LINKS = 500
"""Links per round trip: a thousand PUBLISH take Redis about 2 ms."""

MOST_WAITING = 10_000
"""Links whose messages wait in memory, some megabytes; what does not fit is dropped."""

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
    """Publishes the messages of one sweep or of some calls, in the background; creating one costs nothing.

    What does not fit into the queue, and what a server does not take, is dropped and counted. After a failure, nothing
    in this process asks that server again for five seconds.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.server = _servers.get(client) or _servers.setdefault(client, _Server())
        self._lock = threading.Lock()
        self._enqueued = self._published = self._settled = 0

    def publish(self, messages: Sequence[Message]) -> None:
        """Enqueue *messages*, and return immediately."""
        for chunk in _chunks(messages):
            self._enqueued += 2 * len(chunk)
            if self.server.is_resting:
                self.settle(chunk, 0)
            elif not _queue.put(_Entry(self, chunk), len(chunk)):
                self.server.warn("it answers too slowly")
                self.settle(chunk, 0)

    def wait(self) -> Published:
        """Wait until all is published, at most a second, and return how many messages Redis took, and how many not."""
        before = self._settled
        is_done = background.wait_for(lambda: self._settled == self._enqueued, TIMEOUT_SECONDS)
        if not is_done and self._settled == before:  # the client is more patient than a sweep
            self.server.fail(TimeoutError())
        return Published(self._published, self._enqueued - self._published)

    def settle(self, chunk: Sequence[Message], published: int) -> None:
        """Count the messages of a chunk, of which Redis took so many."""
        with self._lock:
            self._published += published
            self._settled += 2 * len(chunk)
        failed = 2 * len(chunk) - published
        telemetry.count_messages({name: n for name, n in (("published", published), ("failed", failed)) if n})


def _chunks(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    for start in range(0, len(messages), CHUNK_LINKS):
        yield messages[start : start + CHUNK_LINKS]


class _Server:
    """What this process remembers of one client's server."""

    def __init__(self) -> None:
        self._rests_until = self._warned_at = NEVER

    @property
    def is_resting(self) -> bool:
        """Whether the server has failed a moment ago and is not asked again yet."""
        return time.monotonic() < self._rests_until

    def publish(self, client: redis.Redis, messages: Iterable[Message]) -> list[bool]:
        """Publish two messages for each link, in one round trip, and return for each message whether Redis took it.

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
            connection.send_packed_command(connection.pack_commands(commands))
            refusals = [_refusal(connection) for _ in commands]
        except BaseException:  # the rest of the answers belongs to nothing else
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        self._answered(next(filter(None, refusals), None))
        return [refusal is None for refusal in refusals]

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


class _Entry:
    """The messages of some links that wait for being published."""

    def __init__(self, publisher: Publisher, chunk: Sequence[Message]) -> None:
        self.publisher = publisher
        self.server = publisher.server
        self.chunk = chunk


def _publish(entries: Sequence[_Entry]) -> Sequence[_Entry]:
    """Publish entries, those of one server together; none is ever published again."""
    for server, group in groupby(entries, attrgetter("server")):
        _publish_to(server, list(group))
    return ()


def _publish_to(server: _Server, entries: Sequence[_Entry]) -> None:
    taken: list[bool] = []
    if not server.is_resting:
        try:
            client = entries[0].publisher.client
            taken = server.publish(client, [message for entry in entries for message in entry.chunk])
        except Exception as error:  # a driver may raise anything
            server.fail(error)
    start = 0
    for entry in entries:
        end = start + 2 * len(entry.chunk)
        entry.publisher.settle(entry.chunk, sum(taken[start:end]))
        start = end


_queue = Queue(_publish, limit=MOST_WAITING, batch=CHUNK_LINKS)
