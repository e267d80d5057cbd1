"""The client that we use: it connects as the application's own does, waits half a second, and never tries again."""

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

TIMEOUT_SECONDS = 1.0
"""The longest wait for Redis, whatever it does; one answer may take half of that."""

_DENIED = ("ACL failure", "can't run this command", "compiling script")
"""What a script's error contains if a right is missing; the last two are those of a Redis before 7."""


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
        return redis.Redis.from_url(
            text,
            socket_connect_timeout=TIMEOUT_SECONDS / 2,
            socket_timeout=TIMEOUT_SECONDS / 2,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        raise ConfigurationError(f"{setting} cannot be used: it should look like redis://host:6379/0") from None


def server_of(client: redis.Redis, setting: str) -> Server:
    """Return where *client* leads to, without user and password; *setting* is the one that names it."""
    pool: Any = getattr(client, "connection_pool", None)
    if isinstance(pool, SentinelConnectionPool):
        return Server("Redis", unreachable.place(f"the master {pool.service_name} of a Sentinel"), setting)
    return Server("Redis", unreachable.redis_place(getattr(pool, "connection_kwargs", {})), setting)


_fail_fast: WeakKeyDictionary[redis.Redis, redis.Redis] = WeakKeyDictionary()
"""The client of ours for each client of an application."""


def fail_fast_client(client: redis.Redis) -> redis.Redis:
    """Return our client to the server of *client*, the same one each time; *client* itself stays as it is."""
    if not isinstance(client, redis.Redis):  # a RedisCluster
        return client
    known = _fail_fast.get(client)
    return known or _fail_fast.setdefault(client, redis.Redis(connection_pool=_fail_fast_pool(client.connection_pool)))


def _fail_fast_pool(theirs: Any) -> redis.ConnectionPool:
    # What redis-py puts there for notifications of maintenance belongs to the other pool.
    settings = {k: v for k, v in theirs.connection_kwargs.items() if not k.startswith(("maint_", "connection_pool"))}
    settings |= {"socket_timeout": TIMEOUT_SECONDS / 2, "retry": Retry(NoBackoff(), 0), "retry_on_timeout": False}
    if not issubclass(theirs.connection_class, redis.UnixDomainSocketConnection):
        settings["socket_connect_timeout"] = TIMEOUT_SECONDS / 2
    if isinstance(theirs, SentinelConnectionPool):
        settings |= {"connection_class": theirs.connection_class}
        settings |= {"is_master": theirs.is_master, "check_connection": theirs.check_connection}
        manager: Sentinel = copy.copy(theirs.sentinel_manager)
        manager.sentinels = [fail_fast_client(each) for each in theirs.sentinel_manager.sentinels]
        return SentinelConnectionPool(theirs.service_name, manager, **settings)  # type: ignore[no-untyped-call]
    pool: redis.ConnectionPool = copy.copy(theirs)
    pool.connection_kwargs = settings
    pool.reset()
    return pool


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return the result of *call*, or raise its error, after *seconds* at the latest; for calls that are rare.

    Timeouts of sockets alone cannot promise that: a connection takes several answers, an answer several reads, and
    a name may be looked up for long. A call that is late continues in its thread, and its result is dropped.

    Raises:
        TimeoutError: It takes longer.
    """
    results: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:  # raised in the thread that waits
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise TimeoutError("Redis takes too long") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # without an error it is the result


def reason(error: BaseException, needed: str) -> str:
    """Return in a few words why Redis did not do it: the class of *error*, and *needed* if a right is missing."""
    denied = isinstance(error, NoPermissionError) or any(words in str(error) for words in _DENIED)
    return f"{type(error).__name__}{': its user needs ' + needed if denied else ''}"
