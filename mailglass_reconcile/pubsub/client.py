"""The client: one that does not wait, to the server of a URL or of an application's own client."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules import unreachable
from mailglass_reconcile.rules.unreachable import Server

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 1.0
"""What a Redis that does not answer, or answers slowly, may cost one sweep in all."""

_DENIED = ("ACL failure", "can't run this command", "compiling script")
"""What a script's error says if its user may not do what it does; the last two are those of a Redis before 7."""


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


def server_of(client: redis.Redis, setting: str) -> Server:
    """Return where *client* leads to, without user and password; *setting* is what says so."""
    pool: Any = getattr(client, "connection_pool", None)
    if isinstance(pool, SentinelConnectionPool):
        return Server("Redis", unreachable.place(f"the master {pool.service_name} of a Sentinel"), setting)
    return Server("Redis", unreachable.redis_place(getattr(pool, "connection_kwargs", {})), setting)


def impatient(client: redis.Redis) -> redis.Redis:
    """Return a client of our own to the server of *client*, which is left as it is; one of ours is returned itself."""
    if isinstance(client, Impatient) or not isinstance(client, redis.Redis):  # RedisCluster is not one
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
