"""Redis clients: an application's own, used unchanged, or ours, with timeouts of half a second and no retries."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import SecretStr

from mailglass_reconcile.errors import ConfigurationError, docs_url
from mailglass_reconcile.pubsub.lazy_redis import redis
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules.connection_errors import Server

TIMEOUT_SECONDS = 1.0
"""The longest that a sweep waits for Redis in all; our own client waits half of that for one response."""

_PLACE_AND_USER = (
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "protocol"),
    *("encoding", "encoding_errors", "socket_keepalive", "socket_keepalive_options", "socket_type"),
)
"""Settings of a connection that mean the same in redis.asyncio; so do those that begin with `ssl_`."""


def create_client(url: SecretStr, setting: str) -> redis.Redis:
    """Return a client for *url* with short timeouts and no retries, without connecting.

    Celery's URL of a Unix socket, `redis+socket:///path?virtual_host=0`, is accepted too.
    """
    text = url.get_secret_value()
    if text.startswith("redis+socket://"):
        text = text.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=", 1)
    try:
        return redis.Redis.from_url(
            text,
            socket_connect_timeout=TIMEOUT_SECONDS / 2,
            socket_timeout=TIMEOUT_SECONDS / 2,
            retry=_no_retries(),
        )
    except (ValueError, TypeError):
        raise ConfigurationError(f"{setting} cannot be used: it should look like redis://host:6379/0") from None


def _no_retries() -> redis.retry.Retry:
    return redis.retry.Retry(redis.backoff.NoBackoff(), 0)


def server_of(client: redis.Redis, setting: str) -> Server:
    """Return the server of *client*, without user and password; *setting* is the setting that names it."""
    pool: Any = getattr(client, "connection_pool", None)
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        return Server(
            "Redis", connection_errors.format_location(f"the master {pool.service_name} of a Sentinel"), setting
        )
    return Server("Redis", connection_errors.format_redis_location(getattr(pool, "connection_kwargs", {})), setting)


def require_timeouts(client: redis.Redis) -> None:
    """Raise ConfigurationError for an application's client without timeouts, which could wait forever."""
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
        for sentinel in pool.sentinel_manager.sentinels:
            require_timeouts(sentinel)


def async_client(client: redis.Redis) -> redis.asyncio.Redis:
    """Return a new redis.asyncio client for the server of *client*, without connecting."""
    if not isinstance(client, redis.Redis):
        raise ConfigurationError(
            f"subscribing needs a redis.Redis, not a {type(client).__name__}: see"
            f" {docs_url('celery.md#your-own-client')}"
        )
    sync_pool: Any = client.connection_pool
    if not isinstance(sync_pool, redis.sentinel.SentinelConnectionPool):
        kind = _asyncio_class(sync_pool.connection_class)
        settings = _asyncio_settings(kind, sync_pool.connection_kwargs)
        return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=kind, **settings))
    over_tls = issubclass(sync_pool.connection_class, redis.SSLConnection)
    sentinel = redis.asyncio.sentinel
    kind = sentinel.SentinelManagedSSLConnection if over_tls else sentinel.SentinelManagedConnection
    min_others = sync_pool.sentinel_manager.min_other_sentinels
    manager = sentinel.Sentinel([], min_other_sentinels=min_others)
    manager.sentinels = [async_client(sync_client) for sync_client in sync_pool.sentinel_manager.sentinels]
    pool = sentinel.SentinelConnectionPool(
        sync_pool.service_name,
        manager,
        connection_class=kind,
        is_master=sync_pool.is_master,
        check_connection=sync_pool.check_connection,
        **_asyncio_settings(kind, sync_pool.connection_kwargs),
    )
    return redis.asyncio.Redis(connection_pool=pool)


def _asyncio_class(sync_class: type) -> type:
    """Return the connection class of redis.asyncio that corresponds to one of redis."""
    if issubclass(sync_class, redis.UnixDomainSocketConnection):
        return redis.asyncio.UnixDomainSocketConnection
    return redis.asyncio.SSLConnection if issubclass(sync_class, redis.SSLConnection) else redis.asyncio.Connection


def _asyncio_settings(kind: type, sync_settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the class *kind* accepts: older versions of redis.asyncio lack some options of TLS."""
    accepted = {name for class_ in kind.__mro__ for name in inspect.signature(class_).parameters}
    carried = {
        name: value for name, value in sync_settings.items() if name in _PLACE_AND_USER or name.startswith("ssl_")
    }
    settings = {name: value for name, value in carried.items() if name in accepted}
    settings |= {"socket_timeout": TIMEOUT_SECONDS / 2, "socket_connect_timeout": TIMEOUT_SECONDS / 2}
    return settings | {"retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)}


def reason(error: BaseException, needed: str) -> str:
    """Return the cause of an error of Redis: its class, with the *needed* permissions if one was missing."""
    denied = isinstance(error, redis.exceptions.NoPermissionError)
    return f"{type(error).__name__}{': its user needs ' + needed if denied else ''}"
