"""One sweep at a time per tenant argument: celery-singleton's task class, with its edges taken off.

The lock is a convenience that saves work. Losing it, or Redis, costs the lock and never a sweep: the database
keeps overlapping sweeps correct.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Task
from celery.result import AsyncResult
from celery_singleton import Singleton
from kombu.utils.uuid import uuid
from redis import Redis
from redis.exceptions import RedisError

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError

logger = logging.getLogger(__name__)

LOCK_SECONDS = 60
RENEW_SECONDS = 20

_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""

_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class LockBackend:
    """The lock in Redis: taken again by its owner, renewed and released by nobody else.

    Every call waits at most for the client's timeouts, together a second, and then does without the lock.
    """

    def __init__(self, client: Redis) -> None:
        """Use *client*; nothing connects yet."""
        self._client = client
        self._warned = False

    def take(self, key: str, owner: str) -> str:
        """Take the lock for a minute, and return who has it: *owner*, also where Redis cannot be asked."""
        holder = self._call(_TAKE, key, owner, LOCK_SECONDS)
        return holder.decode() if isinstance(holder, bytes) else holder or owner

    def renew(self, key: str, owner: str) -> None:
        """Give *owner* another minute, if the lock is still its own."""
        self._call(_RENEW, key, owner, LOCK_SECONDS)

    def release(self, key: str, owner: str) -> None:
        """Free the lock, if it is still *owner*'s."""
        self._call(_RELEASE, key, owner)

    def _call(self, script: str, key: str, *arguments: str | int) -> Any:
        try:
            return self._client.eval(script, 1, key, *arguments)
        except (RedisError, OSError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("the sweep's lock cannot be used (%s); sweeping without it", type(error).__name__)
            return None


class SweepTask(Singleton):
    """A task of which one request per tenant argument is queued or running, however it was made.

    Beat and `apply_async` meet the lock when they ask, `send_task` and `celery call` when the run starts.
    """

    abstract = True

    @property
    def singleton_backend(self) -> LockBackend:
        """The lock of the Redis that is configured now; the library would share one among all apps."""
        client = runtime.get_lock_redis()
        cached = self.__dict__.get("_lock_backend")
        if cached is None or cached[0] is not client:
            cached = self.__dict__["_lock_backend"] = (client, LockBackend(client))
        backend: LockBackend = cached[1]
        return backend

    def generate_lock(self, task_name: str, task_args: Any = None, task_kwargs: Any = None, **unused: Any) -> str:
        """Return the lock's key: the deployment and the tenant argument, however it was given; not the limit.

        Raises:
            TypeError: The arguments are not the task's.
        """
        bound = inspect.signature(self.run).bind(*(task_args or ()), **(task_kwargs or {}))
        tenant_id = bound.arguments.get("tenant_id")
        which = "all" if tenant_id is None else f"tenant:{_digest(str(tenant_id))}"
        return f"mailglass_reconcile:lock:{_deployment()}:{which}"

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Enqueue a sweep, or return the result of the one that is queued or running already."""
        if self.app.conf.task_always_eager:
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        try:
            key = self.generate_lock(self.name, args, kwargs)
        except ConfigurationError:  # a process that only asks need not know the database; the run meets the lock
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        task_id = task_id or uuid()
        holder = self.singleton_backend.take(key, task_id)
        if holder != task_id:
            return self.on_duplicate(holder)
        try:
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        except BaseException:
            self.singleton_backend.release(key, task_id)
            raise

    @contextmanager
    def held(self) -> Iterator[str]:
        """Hold the lock while the block runs, and yield who has it; a run in eager mode needs none."""
        owner = self.request.id
        if self.request.is_eager or owner is None:
            yield owner
            return
        backend = self.singleton_backend
        key = self.generate_lock(self.name, self.request.args, self.request.kwargs)
        holder = backend.take(key, owner)
        if holder != owner:
            yield holder
            return
        done = threading.Event()
        threading.Thread(target=_renew, args=(backend, key, owner, done), daemon=True).start()
        try:
            yield owner
        finally:
            done.set()
            backend.release(key, owner)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Do nothing: the run has released the lock itself, and nobody else may."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Do nothing: the run has released the lock itself, and one that never ran lets it lapse."""


def _renew(backend: LockBackend, key: str, owner: str, done: threading.Event) -> None:
    while not done.wait(RENEW_SECONDS):
        backend.renew(key, owner)


def _deployment() -> str:
    """Tell installations on one Redis apart: by the database and the schema."""
    url = runtime.get_engine().url
    return _digest(
        f"{url.host}:{url.port}/{url.database}?{sorted(url.query.items())}#{runtime.get_settings().database_schema}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
