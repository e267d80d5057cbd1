"""Redis pub/sub: channel names, the client, and publishing that never costs a sweep more than a second.

Publishing is best effort. What could not be handed to Redis is counted and never sent again, so that no message
is doubled; and a success says only that a Redis took it, not that anybody heard.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from mailglass_reconcile.errors import ConfigurationError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 1.0
"""What a Redis that does not answer, or answers slowly, may cost one sweep in all."""

HEALTHY_SECONDS = 0.01
"""What one call may take and cost none of that: a Redis in good health needs less."""

CHUNK_LINKS = 500
"""Links per call: a script of a thousand PUBLISH holds Redis for about 2 ms."""

_PUBLISH = r"""
for channel, delivery, payload in string.gmatch(ARGV[1], '([^\n]*)\n([^\n]*)\n([^\n]*)\n') do
  redis.call('PUBLISH', channel, payload)
  redis.call('PUBLISH', channel .. ':' .. delivery, payload)
end
"""

# A replica takes PUBLISH, answers OK and tells nobody beyond itself; a master may become one at any moment.
_PUBLISH_ON_MASTER = (
    r"""
local replication = redis.pcall('INFO', 'replication')
if type(replication) ~= 'string' then return redis.error_reply('NOINFO this user may not ask') end
if not string.find(replication, 'role:master', 1, true) then
  return redis.error_reply('READONLY a replica tells nobody beyond itself')
end
"""
    + _PUBLISH
)

# For a user who may not ask: since Redis 7, a replica refuses a script with a header that does not say "no-writes".
_PUBLISH_IF_WRITABLE = "#!lua flags=allow-oom" + _PUBLISH

_DENIED = ("ACL failure", "can't run this command", "compiling script")
"""What a script's error says if its user may not do what it does; the last two are those of a Redis before 7."""


Message = tuple[str, str, str]
"""A tenant id, a delivery id, and the JSON, in one line, that goes to the channels of both."""


class Published(NamedTuple):
    """How many messages Redis took, and how many it did not; two per link."""

    published: int = 0
    failed: int = 0


def events_channel(tenant_id: str, delivery_id: str | None = None) -> str:
    """Return the channel on which a tenant's, or one delivery's, updates are told.

    A tenant id is percent-encoded (UTF-8, upper-case hex) if it holds anything but ASCII letters, digits,
    `.`, `_` and `-`, so that no tenant's channel can be another's and no pattern leaks in.

    Args:
        tenant_id: The tenant, as it stands in the tables.
        delivery_id: The delivery's UUID; without one, the channel of all the tenant's deliveries.
    """
    # quote() leaves "~" alone, which is outside the alphabet above.
    tenant = quote(tenant_id, safe="").replace("~", "%7E")
    channel = f"mailglass:events:{tenant}"
    return channel if delivery_id is None else f"{channel}:{delivery_id}"


class Impatient(redis.Redis):
    """A client whose every call waits half a second for each answer at most, and is made once."""


_ours: WeakKeyDictionary[redis.Redis, Impatient] = WeakKeyDictionary()
"""The client of our own that was made for each one of an application."""


def create_client(url: SecretStr, setting: str) -> redis.Redis:
    """Return a client of *url* with short timeouts and without retries; nothing connects yet.

    Celery's spelling of a Unix socket, `redis+socket:///path?virtual_host=0`, is understood as well.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `redis+socket://`.
        setting: The name of the setting that it comes from, for the error.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    text = url.get_secret_value()
    if text.startswith("redis+socket://"):
        text = text.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=", 1)
    try:
        return Impatient.from_url(
            text,
            socket_connect_timeout=PATIENCE_SECONDS / 2,
            socket_timeout=PATIENCE_SECONDS / 2,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        raise ConfigurationError(f"{setting} cannot be used: it should look like redis://host:6379/0") from None


def impatient(client: redis.Redis) -> redis.Redis:
    """Return a client of our own to the server of *client*, which is left as it is; one of ours is returned itself."""
    if isinstance(client, Impatient) or not isinstance(client, redis.Redis):  # RedisCluster is none
        return client
    if client not in _ours:
        _ours[client] = Impatient(connection_pool=_impatient_pool(client.connection_pool))
    return _ours[client]


def _impatient_pool(theirs: Any) -> redis.ConnectionPool:
    # What redis-py puts there for notifications of maintenance belongs to the other pool.
    settings = {k: v for k, v in theirs.connection_kwargs.items() if not k.startswith(("maint_", "connection_pool"))}
    settings |= {"socket_timeout": PATIENCE_SECONDS / 2, "retry": Retry(NoBackoff(), 0), "retry_on_timeout": False}
    if not issubclass(theirs.connection_class, redis.UnixDomainSocketConnection):
        settings["socket_connect_timeout"] = PATIENCE_SECONDS / 2
    if isinstance(theirs, SentinelConnectionPool):
        settings |= {"connection_class": theirs.connection_class}
        settings |= {"is_master": theirs.is_master, "check_connection": theirs.check_connection}
        manager = _impatient_sentinel(theirs.sentinel_manager)
        return SentinelConnectionPool(theirs.service_name, manager, **settings)  # type: ignore[no-untyped-call]
    pool: redis.ConnectionPool = copy.copy(theirs)
    pool.connection_kwargs = settings
    pool.reset()
    return pool


def _impatient_sentinel(theirs: Sentinel) -> Sentinel:
    sentinel = copy.copy(theirs)
    sentinel.sentinels = [impatient(client) for client in theirs.sentinels]
    return sentinel


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return what *call* returns, or raise what it raises, after *seconds* at the latest.

    Timeouts of sockets alone cannot promise that: a connection takes several answers, an answer several reads, and
    a name may be looked up for long. What is late continues in a thread, and its answer is dropped.

    Raises:
        TimeoutError: It takes longer.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # raised in the thread that waits
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise TimeoutError("Redis takes too long") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value] # without an error it is the answer


def reason(error: Exception, needed: str) -> str:
    """Return in a few words why Redis did not do it: the kind of *error*, and *needed* if a right is missing."""
    denied = isinstance(error, NoPermissionError) or any(words in str(error) for words in _DENIED)
    return f"{type(error).__name__}{': its user needs ' + needed if denied else ''}"


class Publisher:
    """Publishes one sweep's messages; gives up for the rest of the sweep once a second has been lost."""

    def __init__(self, client: redis.Redis) -> None:
        """Use the server of *client*, whose own timeouts and retries do not count; nothing connects yet."""
        self._client = impatient(client)
        self._script = _PUBLISH_ON_MASTER
        self._patience = PATIENCE_SECONDS
        self._warned = False

    def next_sweep(self) -> None:
        """Give another sweep a second of its own; what was warned of is not said again."""
        self._patience = PATIENCE_SECONDS

    def publish(self, messages: Sequence[Message]) -> Published:
        """Hand *messages* to Redis, and return how many it took; raises nothing that a Redis can cause."""
        outcome = Published()
        for start in range(0, len(messages), CHUNK_LINKS):
            chunk = messages[start : start + CHUNK_LINKS]
            taken = 2 * len(chunk) if self._try(chunk) else 0
            outcome = Published(outcome.published + taken, outcome.failed + 2 * len(chunk) - taken)
        return outcome

    def _try(self, chunk: Sequence[Message]) -> bool:
        try:
            self._run(_lines(chunk))
        except (RedisError, OSError) as error:
            if str(error).startswith("NOINFO"):  # which it says before it publishes anything
                self._script = _PUBLISH_IF_WRITABLE
                return self._try(chunk)
            self._warn_once(error)
            return False
        return True

    def _run(self, lines: str) -> None:
        if self._patience <= 0:
            raise TimeoutError("this sweep's time for Redis is over")
        began = time.monotonic()
        try:
            within(self._patience, lambda: self._client.eval(self._script, 0, lines))
        finally:
            self._patience -= max(0.0, time.monotonic() - began - HEALTHY_SECONDS)

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            needed = "the commands EVAL and PUBLISH (before Redis 7 also INFO) on the channels mailglass:events:*"
            logger.warning(
                "cannot publish to MAILGLASS_REDIS_URL (%s); links are unaffected, their broadcasts are lost",
                reason(error, needed),
            )


def _lines(chunk: Sequence[Message]) -> str:
    """Return *chunk* as one argument, three lines a link: none of the three can hold the end of a line."""
    channels = {tenant_id: events_channel(tenant_id) for tenant_id, _, _ in chunk}
    return "".join(f"{channels[tenant_id]}\n{delivery_id}\n{payload}\n" for tenant_id, delivery_id, payload in chunk)
