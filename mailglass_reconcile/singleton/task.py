"""One sweep at a time per tenant argument: celery-singleton's task class, with its edges taken off."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partialmethod
from typing import Any, NoReturn

from celery import Task, group
from celery.result import AsyncResult
from celery_singleton import Singleton
from kombu.utils.uuid import uuid

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, docs_url
from mailglass_reconcile.rules.thresholds import SWEEP_INTERVAL_SECONDS
from mailglass_reconcile.schedule import ORIGIN_HEADER
from mailglass_reconcile.singleton.lock import LockBackend, digest, key_of, queued, running

RESERVED_HEADER = "mailglass_reserved"
"""On a message whose sender has held the lock for it."""
RANGE_OF_HEADER = "mailglass_range_of"
"""On a message of a fan-out's range: the token under which the sweep that was cut holds its lock."""

RUN_HEADER = "mailglass_run"
"""On the same message: the row of that sweep in the run history."""
NUMBERS = ("limit", "fan_out")
"""The arguments of a sweep that are integers; the others are strings."""


@dataclass
class Hold:
    """What a run holds: a lock, under its token, perhaps shared with ranges; or whose duplicate it is, a task's id."""

    key: str | None = None
    token: str = ""
    duplicate_of: str | None = None
    shared: bool = False


class SweepTask(Singleton):
    """A task of which one request per tenant argument is queued or running, however it was made.

    Beat and `apply_async` meet the lock when they ask, `send_task` and `celery call` when the run starts.
    """

    abstract = True
    expires = SWEEP_INTERVAL_SECONDS

    @property
    def singleton_backend(self) -> LockBackend:
        """The lock of the Redis that is configured now; the library would share one among all apps."""
        client = runtime.get_redis()
        cached = self.__dict__.get("_lock_backend")
        if cached is None or cached[0] is not client:
            cached = self.__dict__["_lock_backend"] = (client, LockBackend(client))
        backend: LockBackend = cached[1]
        return backend

    def generate_lock(self, task_name: str, task_args: Any = None, task_kwargs: Any = None, **unused: Any) -> str:
        """Return the lock's key: the deployment, the tenant and the range, however they were given; not the limit."""
        given = self.arguments(task_args, task_kwargs)
        which = key_of(given["tenant_id"])
        between = (given["after"], given["until"])
        return which if between == (None, None) else f"{which}:range:{digest(str(between))}"

    def arguments(self, task_args: Any, task_kwargs: Any = None) -> dict[str, Any]:
        """Return the run's arguments by name; a TypeError says that they are not the task's, or not of its types."""
        bound = inspect.signature(self.run).bind(*(task_args or ()), **(task_kwargs or {}))
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            expected = int | None if name in NUMBERS else str | None
            if not isinstance(value, expected) or isinstance(value, bool):
                raise TypeError("tenant_id, after and until must be strings, limit and fan_out integers, or None")
        return bound.arguments

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Enqueue a sweep, or return the result of the one that is queued or running already.

        A request for now expires after five minutes, unless it says when. One for later (`countdown`, `eta`) does not,
        and meets the lock when its run starts. So does a duplicate with a *task_id* of its own, as a group, a chord or
        a chain gives: a caller waits for the result of that id.
        """
        if self.app.conf.task_always_eager:
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        try:
            key = self.generate_lock(self.name, args, kwargs)
        except ConfigurationError:  # a process that only asks may not know the database; the run meets the lock
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        if options.get("countdown") or options.get("eta"):
            options.setdefault("expires", None)
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        requested = task_id or uuid()
        holder = self.singleton_backend.reserve(key, requested)
        if holder is not None:
            if task_id is None or self._raise_on_duplicate:
                return self.on_duplicate(holder)
            return Task.apply_async(self, args, kwargs, task_id=task_id, **options)
        options["headers"] = {**(options.get("headers") or {}), RESERVED_HEADER: True}
        try:
            return Task.apply_async(self, args, kwargs, task_id=requested, **options)
        except BaseException:
            self.singleton_backend.release(key, queued(requested))
            raise

    @contextmanager
    def held(self) -> Iterator[Hold]:
        """Hold the lock while the block runs, or yield whose duplicate this run is; eager mode needs no lock.

        A range of a fan-out holds its own lock and, together with the other ranges, that of the sweep that was cut.
        """
        if self.request.is_eager or self.request.id is None:
            yield Hold()
            return
        headers, backend = self.request.headers or {}, self.singleton_backend
        key = self.generate_lock(self.name, self.request.args, self.request.kwargs)
        hold = Hold(key, running(self.request.id))
        wanted = [(key, hold.token, bool(headers.get(RESERVED_HEADER)), lambda: hold.shared)]
        if isinstance(whole := headers.get(RANGE_OF_HEADER), str):
            tenant_id = self.arguments(self.request.args, self.request.kwargs)["tenant_id"]
            wanted.append((key_of(tenant_id), whole, True, lambda: True))
        with ExitStack() as kept:
            for lock, token, reserved, is_shared in wanted:
                hold.duplicate_of = backend.take(lock, token, reserved=reserved)
                if hold.duplicate_of is not None:
                    break
                kept.enter_context(backend.kept(lock, token, is_shared))
            yield hold

    def send_ranges(self, hold: Hold, calls: Sequence[dict[str, Any]], run_id: int | None) -> list[str]:
        """Send a sweep for each of *calls*, the keyword arguments of ranges, to this run's own queue; return their ids.

        The lock of *hold* is left to them, and expires a minute after the last of them has ended.
        """
        hold.shared = True
        came_by = self.request.delivery_info or {}
        queue = {"queue": came_by.get("routing_key")}
        if came_by.get("exchange"):
            queue = {"exchange": came_by["exchange"], "routing_key": came_by.get("routing_key")}
        sent = group(self.s(**call) for call in calls).apply_async(
            **queue,
            expires=SWEEP_INTERVAL_SECONDS,
            headers={
                ORIGIN_HEADER: (self.request.headers or {}).get(ORIGIN_HEADER),
                RANGE_OF_HEADER: hold.token,
                RUN_HEADER: run_id,
            },
        )
        return [result.id for result in sent.results]

    @property
    def range_of_run(self) -> int | None:
        """The row in the run history of the sweep that was cut, if this run is a range of it."""
        run_id = (self.request.headers or {}).get(RUN_HEADER)
        return run_id if isinstance(run_id, int) else None

    def _refuse(self, name: str, *_args: Any, **_options: Any) -> NoReturn:
        see = docs_url("formats.md#the-lock-of-celerys-sweeps")
        raise NotImplementedError(f"{name} of celery-singleton does not work on this lock: see {see}")

    # Only `apply_async` takes a lock, and only the run that has it frees it.
    release_lock = partialmethod(_refuse, "release_lock")
    unlock = partialmethod(_refuse, "unlock")
    lock_and_run = partialmethod(_refuse, "lock_and_run")
    aquire_lock = partialmethod(_refuse, "aquire_lock")
    get_existing_task_id = partialmethod(_refuse, "get_existing_task_id")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Do nothing: the run has released the lock itself, and no other process may."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Do nothing: the run has released the lock itself, and that of one that never ran expires."""
