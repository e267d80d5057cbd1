"""The dispatcher: it runs each job of the outbox, a handler on an event, until the handler has succeeded.

A job is claimed, its attempt counted, and that committed first. Then, in a transaction of the application's own
connection which holds nothing else, the job is marked done, the handler runs, COMMIT. After the run the job is marked
failed if it is still waiting, because then that transaction was not committed. So a handler that kills its process, or
its connection, takes no other job with it, and what the database holds decides.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.errors import database_errors, format_command
from mailglass_reconcile.handlers import execution, registration
from mailglass_reconcile.handlers.execution import Begin, HandlerTransaction
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import SessionTransaction
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.tables import handled_types, handler_jobs, runs
from mailglass_reconcile.store.tables.handled_types import Registration
from mailglass_reconcile.store.tables.handler_jobs import Claim, Failure, Job
from mailglass_reconcile.store.tables.runs import Origin, Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONTENTION_PAUSES = (0.02, 0.1, 0.5)
IDLE_SECONDS = 60.0


@dataclass(slots=True)
class DispatchResult:
    """The counts of a dispatcher's jobs.

    Attributes:
        handled: Jobs whose handler succeeded; its work is committed.
        failed: Jobs whose handler failed; each is tried again later, unless it is dead.
        dead: Jobs that have failed for the last time.
        duration_ms: Milliseconds in all.
    """

    handled: int = 0
    failed: int = 0
    dead: int = 0
    duration_ms: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the fields by name, as `dispatch --json` prints them and the task returns them."""
        return asdict(self)

    def as_counts(self) -> dict[str, int]:
        """Return the numbers of jobs as the attributes of a span."""
        return {f"{name}_count": number for name, number in asdict(self).items() if name != "duration_ms"}


def dispatch() -> DispatchResult:
    """Run this process's handlers on every event that is due for them, and return the counts.

    Any number of dispatchers may run at the same time. An error of a handler is counted and logged, by its class.
    Jobs of handlers that this process does not have are left alone.

    Raises:
        MailglassReconcileError: A setting, the connection, a privilege or the schema is wrong.
    """
    return dispatch_within(None)


def dispatch_within(seconds: float | None, origin: Origin = "python") -> DispatchResult:
    """Dispatch, but claim no more jobs after *seconds*; None is no limit. The history of runs keeps the *origin*."""
    runtime.load_imports()
    registrations = registration.own_registrations()
    dispatcher = _Dispatcher(runtime.get_settings(), runtime.get_limits(), registrations, seconds)
    if not registrations:
        return dispatcher.result
    with telemetry.span("dispatch") as span:
        try:
            with (
                database_errors(),
                runtime.database().explaining_schema_errors(),
                execution.open_connection() as begin,
            ):
                dispatcher.run(begin)
                _add_run(begin, dispatcher.result, origin)
        finally:
            telemetry.set_attributes(span, dispatcher.result.as_counts())
    return dispatcher.result


class _Attempt(NamedTuple):
    """An attempt that has ended: the class of its error, None if the handler returned."""

    job: Job
    error: str | None = None
    contended: bool = False


class _Dispatcher:
    """One dispatcher; `result` has the counts so far."""

    def __init__(
        self, settings: Settings, limits: Limits, registrations: list[Registration], seconds: float | None
    ) -> None:
        self.result = DispatchResult()
        self._settings, self._limits = settings, limits
        # Shuffled, so that several dispatchers start with different handlers.
        self._turns = random.sample(registrations, len(registrations))
        self._began = time.monotonic()
        self._seconds = seconds
        self._registered_at = -math.inf

    def run(self, begin: Begin) -> None:
        """Run jobs until none is due."""
        attempt: _Attempt | None = None
        while job := self._next(begin, attempt):
            attempt = None
            if job.dead:
                self._count_dead(job)
            else:
                attempt = self._run(begin, job)
        self.result.duration_ms = round((time.monotonic() - self._began) * 1000)

    def _next(self, begin: Begin, attempt: _Attempt | None) -> Job | None:
        """Record how the last attempt ended, and claim the next job, unless the time is over."""
        self._register(begin)
        is_over = self._seconds is not None and time.monotonic() - self._began > self._seconds
        turns = [] if is_over else self._turns
        failure = Failure(attempt.job, attempt.error or handler_jobs.ROLLED_BACK) if attempt else None

        def action(handler_tx: HandlerTransaction) -> Claim:
            tx = SessionTransaction(handler_tx.connection, self._settings)
            return handler_jobs.claim(tx, turns, synchronous=handler_tx.nested, failure=failure)

        job, failed_state = self._run_without_handler(begin, action)
        if attempt:
            self._count(attempt, failed_state)
        if job:
            # Its handler's turn is over, and the job's type comes last of it.
            self._turns.sort(key=lambda turn: (turn.handler == job.handler, turn == (job.handler, job.type)))
        return job

    def _register(self, begin: Begin) -> None:
        """Register this process's handlers, so that every process enqueues jobs for them."""
        if time.monotonic() - self._registered_at < self._limits.register_seconds:
            return

        def action(handler_tx: HandlerTransaction) -> list[Registration]:
            with use_caller_transaction(handler_tx.connection, self._settings) as tx:
                return handled_types.register(tx, self._turns)

        registration.log_new(self._run_without_handler(begin, action))
        self._registered_at = time.monotonic()

    def _run(self, begin: Begin, job: Job) -> _Attempt | None:
        """Run a handler on an event in a transaction of its own; return None if another dispatcher has the job now."""
        event = execution.make_event(job)
        if event is None:
            return _Attempt(job, handler_jobs.EVENT_MISSING)
        handler = registry.get_handler(job.handler)
        started, handler_error = False, None
        try:
            with begin() as handler_tx, self._start(handler_tx, job) as started:
                if not started:
                    return None
                try:
                    execution.call_handler(handler, handler_tx.connection, event, self._limits.handler_seconds)
                except Exception as error:
                    handler_error = error  # the rollback fails too if Postgres has ended the connection
                    raise
        except Exception as error:  # an application's handler may fail in any way, which costs that job only
            if execution.is_contention(error):
                return _Attempt(job, type(error).__name__, contended=True)
            if not started:
                raise
            return _Attempt(job, execution.log_error(handler, job, handler_error or error))
        return _Attempt(job)

    @contextmanager
    def _start(self, handler_tx: HandlerTransaction, job: Job) -> Iterator[bool]:
        """Mark a job done and limit its transaction to the block; yield False if another dispatcher has the job."""
        tx = SessionTransaction(handler_tx.connection, self._settings)
        before = handler_jobs.start(tx, job, self._limits.handler_seconds)
        yield before is not None
        if before and handler_tx.nested:
            tx.set(before)

    def _count(self, attempt: _Attempt, state: str | None) -> None:
        """Count an attempt by the state of its failed job, which is None if the attempt was committed."""
        job = attempt.job
        if state is None:
            self.result.handled += 1
            if attempt.error:
                logger.warning("handler %s is done with event %s: its work was committed", job.handler, job.event_id)
            return
        if not attempt.error and execution.log_throttle.allow((job.handler, handler_jobs.ROLLED_BACK)):
            logger.warning("handler %s failed on event %s: its work was rolled back", job.handler, job.event_id)
        self.result.failed += not attempt.contended
        if state == "dead":
            self._count_dead(job)

    def _count_dead(self, job: Job) -> None:
        self.result.dead += 1
        if execution.log_throttle.allow((job.handler, "dead")):
            logger.error(
                "event %s is dead for handler %s after %d attempts: see `%s`",
                job.event_id,
                job.handler,
                job.attempts,
                format_command("mailglass-reconcile dispatch --dead"),
            )

    def _run_without_handler(self, begin: Begin, action: Callable[[HandlerTransaction], T]) -> T:
        """Run a transaction without handlers; one that contends with another is tried again, as READ COMMITTED.

        That is enough for claims and registrations, and does not fail; SERIALIZABLE may be the database's default.
        """
        nested = contended = False
        for pause in (*CONTENTION_PAUSES, None):
            try:
                with begin() as handler_tx:
                    nested = handler_tx.nested
                    if contended:
                        handler_tx.connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    return action(handler_tx)
            except Exception as error:
                if pause is None or nested or not execution.is_contention(error):
                    raise
                contended = True
                time.sleep(pause * (1 + random.random()))  # noqa: S311 - not a secret
        raise AssertionError("unreachable")


_runs_added_at: WeakKeyDictionary[sa.Engine, dict[Origin, float]] = WeakKeyDictionary()
"""Times of this process's last rows in the history of runs, by engine and origin."""


def _add_run(begin: Begin, result: DispatchResult, origin: Origin) -> None:
    """Add a row to the history of runs; an idle dispatcher does so once a minute."""
    added_at = _runs_added_at.setdefault(runtime.get_engine(), {})
    idle = not (result.handled or result.failed)
    if idle and time.monotonic() - added_at.get(origin, -IDLE_SECONDS) < IDLE_SECONDS:
        return
    run = Run("dispatch", origin, counts={"duration_ms": result.duration_ms})
    try:
        with begin() as handler_tx, use_caller_transaction(handler_tx.connection, runtime.get_settings()) as tx:
            runs.add(tx, run)
    except Exception as error:  # SQLAlchemy's or a framework's; the handlers have run
        logger.warning("this dispatch is missing from the history of runs: %s", type(error).__name__)
        return
    added_at[origin] = time.monotonic()
