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
from redis import BlockingConnectionPool, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.pubsub import PATIENCE_SECONDS

logger = logging.getLogger(__name__)

LOCK_SECONDS = 60
RENEW_SECONDS = 20

RESERVED_HEADER = "mailglass_reserved"
"""On a message whose sender has held the lock for it."""

# The lock's value is the owner's task id, behind a mark of one character: "q" queued, "r" running.
_TAKE = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) ~= ARGV[1] and not (ARGV[4] == '1' and value:sub(1, 1) == 'q') then return value:sub(2) end
redis.call('SET', KEYS[1], ARGV[2] .. ARGV[1], 'EX', ARGV[3])
return ARGV[1]
"""

_RENEW = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end
"""

_RELEASE = """
local value = redis.call('GET', KEYS[1])
if value and value:sub(2) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
"""


class LockBackend:
    """The lock in Redis: taken again by its owner, renewed and released by nobody else.

    Every call waits at most for the client's timeouts, together a second, and then does without the lock.
    """

    def __init__(self, client: Redis) -> None:
        """Use the Redis of *client*; nothing connects yet."""
        self._client = _impatient(client)
        self._warned = False

    def reserve(self, key: str, owner: str) -> str:
        """Take the lock for a request that is about to be queued; otherwise as `take`."""
        return self._holder(_TAKE, key, owner, "q", LOCK_SECONDS, 0)

    def take(self, key: str, owner: str, *, reserved: bool = False) -> str:
        """Take the lock for a minute, and return who has it: *owner*, also where Redis cannot be asked.

        Args:
            key: The lock.
            owner: The id of the task that starts.
            reserved: Whether it held the lock when it was queued. Then it goes before one that is queued still, or
                else a queue longer than a minute would let each request give way to the next, for ever.
        """
        return self._holder(_TAKE, key, owner, "r", LOCK_SECONDS, int(reserved))

    def renew(self, key: str, owner: str) -> None:
        """Give *owner* another minute, if the lock is still its own."""
        self._call(_RENEW, key, owner, LOCK_SECONDS)

    def release(self, key: str, owner: str) -> None:
        """Free the lock, if it is still *owner*'s."""
        self._call(_RELEASE, key, owner)

    def _holder(self, script: str, key: str, owner: str, *arguments: str | int) -> str:
        holder = self._call(script, key, owner, *arguments)
        return holder.decode() if isinstance(holder, bytes) else holder or owner

    def _call(self, script: str, key: str, *arguments: str | int) -> Any:
        try:
            answer = self._client.eval(script, 1, key, *arguments)
        except (RedisError, OSError) as error:
            if not self._warned:
                self._warned = True
                logger.warning("the sweep's lock cannot be used (%s); sweeping without it", type(error).__name__)
            return None
        self._warned = False
        return answer


def _impatient(client: Redis) -> Redis:
    """Return a client of the same server that waits half a second at most and asks once, whatever *client* does."""
    pool = client.connection_pool
    if type(pool) not in (ConnectionPool, BlockingConnectionPool):
        return client  # Sentinel's pool, or one of the application's own, is more than its arguments
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": PATIENCE_SECONDS / 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
    }
    if not issubclass(pool.connection_class, UnixDomainSocketConnection):
        settings["socket_connect_timeout"] = PATIENCE_SECONDS / 2
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **settings))


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
            TypeError: The arguments are not the task's, or not of its types.
        """
        bound = inspect.signature(self.run).bind(*(task_args or ()), **(task_kwargs or {}))
        tenant_id, limit = bound.arguments.get("tenant_id"), bound.arguments.get("limit")
        if not isinstance(tenant_id, str | None) or not isinstance(limit, int | None) or isinstance(limit, bool):
            raise TypeError("tenant_id must be a text and limit an integer, or None")
        which = "all" if tenant_id is None else f"tenant:{_digest(tenant_id)}"
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
        holder = self.singleton_backend.reserve(key, task_id)
        if holder != task_id:
            return self.on_duplicate(holder)
        options["headers"] = {**(options.get("headers") or {}), RESERVED_HEADER: True}
        try:
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        except BaseException:
            self.singleton_backend.release(key, task_id)
            raise

    @contextmanager
    def held(self) -> Iterator[str]:
        """Hold the lock while the block runs, and yield who has it; a run in eager mode needs none.

        Raises:
            TypeError: As in `generate_lock`.
        """
        owner = self.request.id
        if self.request.is_eager or owner is None:
            yield owner
            return
        key = self.generate_lock(self.name, self.request.args, self.request.kwargs)
        backend = self.singleton_backend
        holder = backend.take(key, owner, reserved=bool((self.request.headers or {}).get(RESERVED_HEADER)))
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
    """Tell installations on one Redis apart: by the database and the schema, not by options of the connection."""
    url = runtime.get_engine().url
    place = [url.host, url.port, url.database, *(url.query.get(name) for name in ("host", "port", "dbname"))]
    return _digest(f"{place}#{runtime.get_settings().database_schema}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
