"""The client: one of an application, as it is, or one of our own, which waits half a second and never tries again."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import SecretStr

from mailglass_reconcile.errors import ConfigurationError, docs_url
from mailglass_reconcile.pubsub.lazy_redis import redis
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules.connection_errors import Server

TIMEOUT_SECONDS = 1.0
"""The longest that a sweep waits for Redis in all; our own client waits half of that for one answer."""

_PLACE_AND_USER = (
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "protocol"),
    *("encoding", "encoding_errors", "socket_keepalive", "socket_keepalive_options", "socket_type"),
)
"""Settings of a connection that mean the same in redis.asyncio; so do those that begin with `ssl_`."""


def create_client(url: SecretStr, setting: str) -> redis.Redis:
    """Return a client of *url* with short timeouts and without retries; nothing connects yet.

    Celery's spelling of a Unix socket, `redis+socket:///path?virtual_host=0`, is understood as well.
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
        return Server(
            "Redis", connection_errors.format_location(f"the master {pool.service_name} of a Sentinel"), setting
        )
    return Server("Redis", connection_errors.format_redis_location(getattr(pool, "connection_kwargs", {})), setting)


def require_timeouts(client: redis.Redis) -> None:
    """Refuse a client of an application that could wait without end."""
    if not isinstance(client, redis.Redis):
        raise ConfigurationError(f"configure(redis=…) needs a redis.Redis, not a {type(client).__name__}")
    pool: Any = client.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)  # only this knows the defaults of its class
    connects_at_once = isinstance(connection, redis.UnixDomainSocketConnection)
    if not (connection.socket_timeout and (connects_at_once or connection.socket_connect_timeout)):
        raise ConfigurationError(
            "configure(redis=…): the client would wait without end for a server that does not answer;"
            " give it socket_timeout and socket_connect_timeout, such as 0.5 seconds each"
        )
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        for each in pool.sentinel_manager.sentinels:
            require_timeouts(each)


def async_client(client: redis.Redis) -> redis.asyncio.Redis:
    """Return a new client of redis.asyncio to the server of *client*; nothing connects yet."""
    if not isinstance(client, redis.Redis):
        raise ConfigurationError(
            f"subscribing needs a redis.Redis, not a {type(client).__name__}: see"
            f" {docs_url('redis.md#your-own-client')}"
        )
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


def reason(error: BaseException, needed: str) -> str:
    """Return in a few words why Redis did not do it: the class of *error*, and *needed* if a right is missing."""
    denied = isinstance(error, redis.exceptions.NoPermissionError)
    return f"{type(error).__name__}{': its user needs ' + needed if denied else ''}"
