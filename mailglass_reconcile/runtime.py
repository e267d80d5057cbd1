"""The composition root: this process's settings, engine and Redis client, and what runs on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import sqlalchemy as sa

from mailglass_reconcile import pubsub
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.ops.pruner import PruneResult
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult

if TYPE_CHECKING:
    import redis as redis_py


class _Configured:
    engine: sa.Engine | None = None
    redis: redis_py.Redis | None = None
    settings: Settings | None = None


def configure(
    engine: sa.Engine | None = None,
    redis: redis_py.Redis | None = None,
    settings: Settings | None = None,
) -> None:
    """Use an application's own engine, Redis client or settings; what is None comes from the environment.

    Nothing connects. A later call replaces an earlier one whole.

    Args:
        engine: A SQLAlchemy engine on psycopg 3. After a fork, the application disposes of it in the child with
            `engine.dispose(close=False)`, as for its own use.
        redis: A client for broadcasts. Its timeouts bound what a silent Redis costs a sweep.
        settings: Takes the place of the environment.
    """
    _Configured.engine, _Configured.redis, _Configured.settings = engine, redis, settings
    _own_engine.cache_clear()
    _own_redis.cache_clear()
    _own_lock_redis.cache_clear()


def get_settings() -> Settings:
    """Return the configured settings, or those of the environment as it is now.

    Raises:
        ConfigurationError: A variable holds a value that cannot be used.
    """
    return _Configured.settings or Settings()


def get_engine() -> sa.Engine:
    """Return the configured engine, or one of `MAILGLASS_DATABASE_URL`; it has not connected yet.

    Raises:
        ConfigurationError: The URL is missing or cannot be used.
    """
    return _Configured.engine or _own_engine(get_settings())


def get_redis() -> redis_py.Redis:
    """Return the configured Redis client, or one of `MAILGLASS_REDIS_URL`; it has not connected yet.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    return _Configured.redis or _own_redis(get_settings())


@cache
def _own_engine(settings: Settings) -> sa.Engine:
    return database.create_engine(settings)


@cache
def _own_lock_redis(settings: Settings) -> redis_py.Redis:
    return pubsub.create_client(settings.lock_url or settings.redis_url, "MAILGLASS_LOCK_URL")


@cache
def _own_redis(settings: Settings) -> redis_py.Redis:
    return pubsub.create_client(settings.redis_url, "MAILGLASS_REDIS_URL")


def get_lock_redis() -> redis_py.Redis:
    """Return a client of `MAILGLASS_LOCK_URL`, or where that is unset the one for broadcasts.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    settings = get_settings()
    return _own_lock_redis(settings) if settings.lock_url else get_redis()


def after_fork() -> None:
    """Forget, in a forked child, connections of an application's engine, which are the parent's."""
    if _Configured.engine is not None:
        _Configured.engine.dispose(close=False)


def sweep(
    tenant_id: str | None = None,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    progress: Callable[[SweepResult], None] | None = None,
) -> Sweep:
    """Return a sweep on this process's settings and Redis client; `reconcile` says what the arguments are.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        ValueError: *limit* is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    publisher = pubsub.Publisher(get_redis())
    return Sweep(get_settings(), publisher, tenant_id=tenant_id, limit=limit, dry_run=dry_run, progress=progress)


def reconcile(tenant_id: str | None = None, limit: int | None = None) -> SweepResult:
    """Link every eligible orphan whose delivery is there, and tell of each link; return the counts.

    Takes no lock: any number of sweeps may run at once, in any number of processes.

    Args:
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many; the rest stays open.

    Returns:
        The counts. A sweep that broke off half-way says so in its `status`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a right or the schema is wrong.
        ValueError: *limit* is below 1.
    """
    return sweep(tenant_id, limit).run(get_engine())


def prune() -> PruneResult:
    """Delete raw webhooks by status and age, take expired orphans out of the open set, and mend it.

    Raises:
        MailglassReconcileError: A setting, the connection, a right or the schema is wrong.
    """
    return pruner.prune(get_engine(), get_settings())


def available() -> bool:
    """Whether Celery can be imported, and so whether the tasks and the beat schedule exist."""
    try:
        return all(importlib.util.find_spec(name) for name in ("celery", "celery_singleton"))
    except (ImportError, ValueError):  # an import hook that forbids it, a half-loaded module
        return False
