"""The settings, the engine and the Redis clients of this process."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError, set_local_names
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.limits import LIMITS, Limits

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import redis as redis_py
    import sqlalchemy as sa

    from mailglass_reconcile.pubsub import AsyncSubscription, Publisher, Subscription
    from mailglass_reconcile.store.database import Database


logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


class _Configuration:
    engine: sa.Engine | None = None
    redis: redis_py.Redis | None = None
    settings: Settings | None = None
    limits = LIMITS


class _FrameworkConfiguration:
    make_engine: Callable[[], sa.Engine] | None = None
    open_handlers_connection: Callable[[], AbstractContextManager[Any]] | None = None
    values: Mapping[str, Any] = MappingProxyType({})


def configure(
    engine: sa.Engine | None = None,
    redis: redis_py.Redis | None = None,
    settings: Settings | None = None,
) -> None:
    """Set your own engine, Redis client or settings; each one that is None comes from the environment.

    Nothing connects. A later call replaces an earlier one completely.

    Args:
        engine: A SQLAlchemy engine on psycopg 3. After a fork, call `engine.dispose(close=False)` in the child.
        redis: A client for live updates and the sweep's lock, such as `redis.Redis(…)`, with both timeouts,
            `socket_timeout` and `socket_connect_timeout`.
        settings: Settings that replace those of the environment.

    Raises:
        ConfigurationError: *redis* has no timeouts, or is not a `redis.Redis`.
    """
    if redis is not None:
        from mailglass_reconcile import pubsub  # noqa: PLC0415 - loading it takes long

        pubsub.require_timeouts(redis)
    _Configuration.engine, _Configuration.redis, _Configuration.settings = engine, redis, settings
    _reread_settings()


def configure_framework(
    make_engine: Callable[[], sa.Engine] | None = None,
    local_names: Mapping[str, str] = MappingProxyType({}),
    open_handlers_connection: Callable[[], AbstractContextManager[Any]] | None = None,
    **values: Any,
) -> None:
    """Set the engine and the settings of a framework, which rank after `configure` and before the environment.

    Args:
        make_engine: Returns the framework's engine, the same at each call; it is called on first use.
        local_names: The words that replace those of messages, such as those for the command and for settings.
        open_handlers_connection: Opens the connection of a dispatcher; None is one of the engine's.
        values: Settings by name.
    """
    set_local_names(local_names)
    _FrameworkConfiguration.make_engine = staticmethod(make_engine) if make_engine else None
    _FrameworkConfiguration.open_handlers_connection = (
        staticmethod(open_handlers_connection) if open_handlers_connection else None
    )
    _FrameworkConfiguration.values = values
    _reread_settings()


def framework_handlers_connection() -> Callable[[], AbstractContextManager[Any]] | None:
    """Return what opens a framework's connection for handlers, or None."""
    return _FrameworkConfiguration.open_handlers_connection


def has_framework_engine() -> bool:
    """Return True if a framework, such as Django, has set its engine."""
    return _FrameworkConfiguration.make_engine is not None


def _framework_engine() -> sa.Engine | None:
    make_engine = _FrameworkConfiguration.make_engine
    return make_engine() if make_engine else None


_cached_functions: list[Any] = []


def cleared_with_settings(cached_function: Function) -> Function:
    """Clear the cache of a function of `functools` when the settings, from which its results are made, change."""
    _cached_functions.append(cached_function)
    return cached_function


def _reread_settings() -> None:
    for function in _cached_functions:
        function.cache_clear()


@cleared_with_settings
@cache
def get_settings() -> Settings:
    """Return the configured settings, or those of the framework and of the environment, read once per process."""
    return read_settings()


def read_settings() -> Settings:
    """Return the settings as they are now, also if an application changes its environment before it uses them."""
    return _Configuration.settings or Settings(**_FrameworkConfiguration.values)


@cleared_with_settings
@cache
def database() -> Database:
    """Return this process's database, the engine with the settings, without connecting."""
    from mailglass_reconcile.store.database import Database  # noqa: PLC0415 - loading it takes long

    return Database(get_engine(), get_settings(), get_limits())


def get_limits() -> Limits:
    """Return the limits of the work on this process's database."""
    return _Configuration.limits


def set_limits(limits: Limits) -> None:
    """Replace the limits of the work on this process's database."""
    _Configuration.limits = limits
    database.cache_clear()


def get_engine() -> sa.Engine:
    """Return the configured engine, the framework's, or one for `MAILGLASS_DATABASE_URL`, without connecting."""
    return _Configuration.engine or _framework_engine() or _own_engine(get_settings())


def pooled_engine(size: int) -> sa.Engine:
    """Return the configured engine, the framework's, or a new one with a pool of *size* connections."""
    from mailglass_reconcile.store import engines  # noqa: PLC0415 - loading it takes long

    return _Configuration.engine or _framework_engine() or engines.create_engine(get_settings(), pool_size=size)


def get_redis() -> redis_py.Redis:
    """Return the configured Redis client, or one for `MAILGLASS_REDIS_URL`, without connecting."""
    return _Configuration.redis or _own_redis(get_settings())


def is_redis_configured() -> bool:
    """Return True if Redis was configured; otherwise there may be none at the default address."""
    return _Configuration.redis is not None or "redis_url" in get_settings().model_fields_set


def create_publisher() -> Publisher:
    """Return a publisher for this process's Redis, without connecting."""
    from mailglass_reconcile.pubsub import Publisher  # noqa: PLC0415 - loading it takes long

    return Publisher(get_redis(), is_expected=is_redis_configured())


def subscribe(tenant_id: str | None = None, delivery_id: str | UUID | None = None) -> Subscription:
    """Subscribe to live updates: an iterator of `Update`, and of `Missed` if the connection was lost meanwhile.

    The subscription is confirmed when this returns, so read the tables after it. Iterating waits for the next update,
    and reconnects as often as necessary. Use it in a `with` block, or call `close()`.

    Args:
        tenant_id: Only this tenant; None is all tenants.
        delivery_id: Only this delivery.

    Raises:
        RedisUnavailableError: Redis cannot be reached, or refuses.
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
        ValueError: *delivery_id* is not a UUID.
    """
    from mailglass_reconcile.pubsub import Subscription  # noqa: PLC0415 - loading it takes long

    return Subscription(get_redis(), tenant_id, delivery_id)


def subscribe_async(tenant_id: str | None = None, delivery_id: str | UUID | None = None) -> AsyncSubscription:
    """Subscribe to live updates in async code: `async with subscribe_async(…) as updates: async for …`.

    It is `subscribe` without blocking the event loop. If you passed a client to `configure`, such as Sentinel's, its
    settings are used for a `redis.asyncio` client.

    Args:
        tenant_id: Only this tenant; None is all tenants.
        delivery_id: Only this delivery.

    Raises:
        RedisUnavailableError: At the beginning of the block: Redis cannot be reached, or refuses.
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
        ValueError: *delivery_id* is not a UUID.
    """
    from mailglass_reconcile.pubsub import AsyncSubscription  # noqa: PLC0415 - loading it takes long

    return AsyncSubscription(get_redis(), tenant_id, delivery_id)


@cleared_with_settings
@cache
def _own_engine(settings: Settings) -> sa.Engine:
    from mailglass_reconcile.store import engines  # noqa: PLC0415 - loading it takes long

    return engines.create_engine(settings)


@cleared_with_settings
@cache
def _own_redis(settings: Settings) -> redis_py.Redis:
    from mailglass_reconcile import pubsub  # noqa: PLC0415 - loading it takes long

    return pubsub.create_client(settings.redis_url, "MAILGLASS_REDIS_URL")


def dispose_after_fork() -> None:
    """Dispose of the configured engine's connections in a forked child: they are the parent's."""
    if _Configuration.engine is not None:
        _Configuration.engine.dispose(close=False)


def available() -> bool:
    """Return True if Celery is installed, so that the tasks and the beat schedule exist."""
    try:
        return all(importlib.util.find_spec(name) for name in ("celery", "celery_singleton"))
    except (ImportError, ValueError):  # an import hook that forbids it, a half-loaded module
        return False


def load_imports(*, only_warn: bool = False) -> None:
    """Import the modules of `MAILGLASS_IMPORTS`, which register an application's key rules and handlers.

    They are searched for in the working directory too, after all other places.

    Args:
        only_warn: Log a module that cannot be imported, once, instead of raising `ConfigurationError`; for callers
            that only read.
    """
    if imports := get_settings().imports:
        _load([name for part in imports.split(",") if (name := part.strip())], only_warn=only_warn)


def load_imports_once() -> None:
    """Import the modules of `MAILGLASS_IMPORTS`; if that has failed in this process, raise the same error again.

    For callers whom strangers can make import: a module that fails would run for each of their requests.
    """
    if failure := _import_failure():
        raise ConfigurationError(failure)


@cleared_with_settings
@cache
def _import_failure() -> str | None:
    try:
        load_imports()
    except ConfigurationError as error:
        return str(error)
    return None


def _load(names: Sequence[str], *, only_warn: bool) -> None:
    with nullcontext() if all(name in sys.modules for name in names) else _working_directory_last():
        for name in names:
            try:
                _import(name)
            except ConfigurationError as error:
                if not only_warn:
                    raise
                _warn_once(f"{error}; results may be wrong because a key rule is missing")


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except MailglassReconcileError as error:
        raise ConfigurationError(f"MAILGLASS_IMPORTS: cannot import {name}: {error}") from error
    except Exception as error:  # an application's module may fail in any way
        raise ConfigurationError(f"MAILGLASS_IMPORTS: cannot import {name} ({type(error).__name__})") from error


@contextmanager
def _working_directory_last() -> Iterator[None]:
    """Append the working directory to `sys.path` while the block runs."""
    working_directory = ""  # as Python itself writes it
    sys.path.append(working_directory)
    try:
        yield
    finally:
        if working_directory in sys.path:  # a module may have set another path
            del sys.path[-1 - sys.path[::-1].index(working_directory)]


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
