"""The client that we use: it connects as the application's own does, waits half a second, and never tries again."""

from __future__ import annotations

import copy
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pydantic import SecretStr

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub.library import redis
from mailglass_reconcile.rules import unreachable
from mailglass_reconcile.rules.unreachable import Server

Answer = TypeVar("Answer")

TIMEOUT_SECONDS = 1.0
"""The longest wait for Redis, whatever it does; one answer may take half of that."""

_DENIED = ("ACL failure", "can't run this command", "compiling script")
"""What a script's error contains if a right is missing; the last two are those of a Redis before 7."""

_PLACE_AND_USER = (
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "protocol"),
    *("encoding", "encoding_errors", "socket_keepalive", "socket_keepalive_options", "socket_type"),
)
"""Settings of a connection that mean the same in redis.asyncio; so do those that begin with `ssl_`."""


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
            retry=_never_again(),
        )
    except (ValueError, TypeError):
        raise ConfigurationError(f"{setting} cannot be used: it should look like redis://host:6379/0") from None


def _never_again() -> redis.retry.Retry:
    return redis.retry.Retry(redis.backoff.NoBackoff(), 0)


def server_of(client: redis.Redis, setting: str) -> Server:
    """Return where *client* leads to, without user and password; *setting* is the one that names it."""
    pool: Any = getattr(client, "connection_pool", None)
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
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
    settings |= {"socket_timeout": TIMEOUT_SECONDS / 2, "retry": _never_again(), "retry_on_timeout": False}
    if not issubclass(theirs.connection_class, redis.UnixDomainSocketConnection):
        settings["socket_connect_timeout"] = TIMEOUT_SECONDS / 2
    if isinstance(theirs, redis.sentinel.SentinelConnectionPool):
        settings |= {"connection_class": theirs.connection_class}
        settings |= {"is_master": theirs.is_master, "check_connection": theirs.check_connection}
        manager: redis.sentinel.Sentinel = copy.copy(theirs.sentinel_manager)
        manager.sentinels = [fail_fast_client(each) for each in theirs.sentinel_manager.sentinels]
        kind = redis.sentinel.SentinelConnectionPool
        return kind(theirs.service_name, manager, **settings)  # type: ignore[no-untyped-call]
    pool: redis.ConnectionPool = copy.copy(theirs)
    pool.connection_kwargs = settings
    # Newer releases of redis-py share the locks with the copy. The end of the process may stop our thread while it
    # holds one. The application's client takes the same lock at its own end, and would never get it.
    pool._lock, pool._fork_lock = threading.RLock(), threading.RLock()
    pool.reset()
    return pool


def async_client(client: redis.Redis) -> redis.asyncio.Redis:
    """Return a new client of redis.asyncio to the server of *client*; nothing connects yet.

    Raises:
        ConfigurationError: *client* is neither a `redis.Redis` nor one of a Sentinel.
    """
    if not isinstance(client, redis.Redis):
        raise ConfigurationError(f"subscribe_async cannot use a {type(client).__name__}: configure a redis.Redis")
    theirs: Any = client.connection_pool
    if not isinstance(theirs, redis.sentinel.SentinelConnectionPool):
        kind = _asyncio_class(theirs.connection_class)
        pool = redis.asyncio.ConnectionPool(connection_class=kind, **_asyncio_settings(kind, theirs.connection_kwargs))
        return redis.asyncio.Redis(connection_pool=pool)
    over_tls = issubclass(theirs.connection_class, redis.SSLConnection)
    sentinel = redis.asyncio.sentinel
    kind = sentinel.SentinelManagedSSLConnection if over_tls else sentinel.SentinelManagedConnection
    fewest = theirs.sentinel_manager.min_other_sentinels
    manager = sentinel.Sentinel([], min_other_sentinels=fewest)  # type: ignore[no-untyped-call]
    manager.sentinels = [async_client(each) for each in theirs.sentinel_manager.sentinels]
    found = sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        theirs.service_name,
        manager,
        connection_class=kind,
        is_master=theirs.is_master,
        check_connection=theirs.check_connection,
        **_asyncio_settings(kind, theirs.connection_kwargs),
    )
    return redis.asyncio.Redis(connection_pool=found)


def _asyncio_class(theirs: type) -> type:
    if issubclass(theirs, redis.UnixDomainSocketConnection):
        return redis.asyncio.UnixDomainSocketConnection
    return redis.asyncio.SSLConnection if issubclass(theirs, redis.SSLConnection) else redis.asyncio.Connection


def _asyncio_settings(kind: type, theirs: dict[str, Any]) -> dict[str, Any]:
    """Return those of *theirs* that *kind* takes: older versions of redis.asyncio lack some options of TLS."""
    accepted = {name for each in kind.__mro__ for name in inspect.signature(each).parameters}
    carried = {name: value for name, value in theirs.items() if name in _PLACE_AND_USER or name.startswith("ssl_")}
    settings = {name: value for name, value in carried.items() if name in accepted}
    settings |= {"socket_timeout": TIMEOUT_SECONDS / 2, "socket_connect_timeout": TIMEOUT_SECONDS / 2}
    return settings | {"retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)}


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
    denied = isinstance(error, redis.exceptions.NoPermissionError) or any(words in str(error) for words in _DENIED)
    return f"{type(error).__name__}{': its user needs ' + needed if denied else ''}"
