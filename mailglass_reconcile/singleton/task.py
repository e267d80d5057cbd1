"""Celery's task class for sweeps: celery-singleton's, hardened, with one sweep at a time per tenant argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

from celery import Task, group
from celery.result import AsyncResult
from celery_singleton import Singleton
from kombu.utils.uuid import uuid

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, InvalidArgumentError
from mailglass_reconcile.rules.thresholds import SWEEP_INTERVAL_SECONDS
from mailglass_reconcile.schedule import ORIGIN_HEADER
from mailglass_reconcile.singleton.lock import LockBackend, digest, lock_key, queued_token, running_token

RESERVED_HEADER = "mailglass_reserved"
"""Header of a message: the key of the lock that its sender holds for it."""
RANGE_OF_HEADER = "mailglass_range_of"
"""Header of a fan-out's range: the token with which the divided sweep holds its lock."""

RUN_HEADER = "mailglass_run"
"""Header of a fan-out's range: the id of the divided sweep's row in the run history."""


def bind_arguments(run: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a task's run by name.

    Raises:
        InvalidArgumentError: They do not fit the signature of *run*, or have other types.
    """
    try:
        bound = inspect.signature(run).bind(*(args or ()), **(kwargs or {}))
    except TypeError as error:
        raise InvalidArgumentError(f"the arguments do not fit: {error}") from None
    bound.apply_defaults()
    types = get_type_hints(run)
    for name, value in bound.arguments.items():
        expected = int | float if types[name] is float else types[name]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InvalidArgumentError(f"{name} must be {expected}, not {type(value).__name__}")
    return bound.arguments


def options_of_queue(request: Any) -> dict[str, Any]:
    """Return the options that send a task to the queue from which a worker took a request."""
    delivery_info = request.delivery_info or {}
    routing_key = delivery_info.get("routing_key")
    if exchange := delivery_info.get("exchange"):
        return {"exchange": exchange, "routing_key": routing_key}
    return {"queue": routing_key}


@dataclass
class LockLease:
    """The lock that a run holds, or the task whose duplicate the run is.

    Attributes:
        key: The lock's key; None in eager mode, which takes no lock.
        token: The token with which the run holds it.
        duplicate_of: The id of the task that holds the lock instead.
        shared: True if ranges of a fan-out share the lock, so that it is not released.
    """

    key: str | None = None
    token: str = ""
    duplicate_of: str | None = None
    shared: bool = False


class SweepTask(Singleton):
    """A task with at most one request per tenant argument queued or running, however it was requested.

    Requests of beat and `apply_async` take the lock when they are enqueued, those of `send_task` and `celery call` when
    the run starts.
    """

    abstract = True
    expires = SWEEP_INTERVAL_SECONDS

    @property
    def singleton_backend(self) -> LockBackend:
        """The locks of the configured Redis; celery-singleton would share one backend among all apps."""
        client = runtime.get_redis()
        cached = self.__dict__.get("_lock_backend")
        if cached is None or cached[0] is not client:
            cached = self.__dict__["_lock_backend"] = (client, LockBackend(client))
        backend: LockBackend = cached[1]
        return backend

    def generate_lock(self, task_name: str, task_args: Any = None, task_kwargs: Any = None, **unused: Any) -> str:
        """Return the lock's key in Redis, which names the deployment, the tenant and the range, but not the limit."""
        arguments = bind_arguments(self.run, task_args, task_kwargs)
        key = lock_key(arguments["tenant_id"])
        bounds = (arguments["after"], arguments["until"])
        return key if bounds == (None, None) else f"{key}:range:{digest(str(bounds))}"

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Enqueue a sweep, or return the result of the one that is queued or running already.

        A request expires after five minutes by default. A delayed request (`countdown`, `eta`) does not expire, and
        takes the lock when its run starts. So does a duplicate with its own *task_id*, as in a group, a chord or a
        chain, because the caller waits for the result of that id. A request for a *queue* is a duplicate only of one
        that waits there, because its workers may have another database than this process.
        """
        if self.app.conf.task_always_eager:
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        try:
            key = self.generate_lock(self.name, args, kwargs)
        except ConfigurationError:  # a process that only enqueues may not know the database; the run takes the lock
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        if options.get("countdown") or options.get("eta"):
            options.setdefault("expires", None)
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        if queue := options.get("queue"):
            key = f"{key}:queue:{digest(str(getattr(queue, 'name', queue)))}"
        request_id = task_id or uuid()
        holder_id = self.singleton_backend.reserve(key, request_id)
        if holder_id is not None:
            if task_id is None or self._raise_on_duplicate:
                return self.on_duplicate(holder_id)
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        options["headers"] = {**(options.get("headers") or {}), RESERVED_HEADER: key}
        try:
            return Task.apply_async(self, args, kwargs, task_id=request_id, **options)
        except BaseException:
            self.singleton_backend.release(key, queued_token(request_id))
            raise

    @contextmanager
    def holding_lock(self) -> Iterator[LockLease]:
        """Hold the lock while the block runs, or yield a lease that names the task which holds it.

        Eager mode takes no lock. A range of a fan-out holds its own lock and, together with the other ranges, the lock
        of the divided sweep.
        """
        if self.request.is_eager or self.request.id is None:
            yield LockLease()
            return
        headers, backend = self.request.headers or {}, self.singleton_backend
        key = self.generate_lock(self.name, self.request.args, self.request.kwargs)
        lease = LockLease(key, running_token(self.request.id))
        reserved = headers.get(RESERVED_HEADER)
        if isinstance(reserved, str) and reserved != key:  # the lock of a queue
            backend.release(reserved, queued_token(self.request.id))
        locks = [(key, lease.token, reserved == key, lambda: lease.shared)]
        if isinstance(sweep_token := headers.get(RANGE_OF_HEADER), str):
            tenant_id = bind_arguments(self.run, self.request.args, self.request.kwargs)["tenant_id"]
            locks.append((lock_key(tenant_id), sweep_token, True, lambda: True))
        with ExitStack() as renewals:
            for lock, token, reserved, is_shared in locks:
                lease.duplicate_of = backend.acquire(lock, token, reserved=reserved)
                if lease.duplicate_of is not None:
                    break
                renewals.enter_context(backend.renewing(lock, token, is_shared))
            yield lease

    def send_ranges(self, lease: LockLease, calls: Sequence[dict[str, Any]], run_id: int | None) -> list[str]:
        """Enqueue a sweep for each range on this run's queue, and return the tasks' ids.

        The ranges share the lock of *lease* from now on; it expires a minute after the last of them has ended.

        Args:
            lease: The lock of the divided sweep.
            calls: The keyword arguments of each range.
            run_id: The row of the divided sweep in the run history.
        """
        lease.shared = True
        group_result = group(self.s(**call) for call in calls).apply_async(
            **options_of_queue(self.request),
            expires=SWEEP_INTERVAL_SECONDS,
            headers={
                ORIGIN_HEADER: (self.request.headers or {}).get(ORIGIN_HEADER),
                RANGE_OF_HEADER: lease.token,
                RUN_HEADER: run_id,
            },
        )
        return [result.id for result in group_result.results]

    @property
    def range_of_run(self) -> int | None:
        """The divided sweep's row in the run history, if this run is one of its ranges."""
        run_id = (self.request.headers or {}).get(RUN_HEADER)
        return run_id if isinstance(run_id, int) else None

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Do nothing: the run has released its lock, and no other process may."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Do nothing: the run has released its lock, and the lock of a run that never started expires."""
