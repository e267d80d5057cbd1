"""The dispatcher: it calls each handler for each event of the outbox, until the handler has succeeded.

An attempt is counted and committed first. Then, in one transaction of the application's own connection, handlers run,
each under a savepoint in which the row notes that it is done. What is new is tried in batches; if a batch cannot be
committed, and for what was tried before, each handler of each event gets a transaction of its own, so that one that
kills its process, or its connection, takes nobody else with it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.hooks import running
from mailglass_reconcile.hooks.running import Begin, EndedError, Work
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.handlers import Registered
from mailglass_reconcile.rules.humanize import counted
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import outbox, runs
from mailglass_reconcile.store.borrowing import borrowed
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.outbox import Attempt, Claim, Held, Settled
from mailglass_reconcile.store.runs import Origin, Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_EVENTS = 100
BATCH_SECONDS = 1.0
"""After this, a batch commits what it has done and gives back the rest."""
CONTENTION_PAUSES = (0.02, 0.1, 0.5)
IDLE_SECONDS = 60.0
LISTED = 1_000
RETRY_ROWS = 5_000


@dataclass(slots=True)
class DispatchResult:
    """What a dispatcher did.

    Attributes:
        dispatched: Events whose handlers are all done.
        handled: Runs of handlers that succeeded, and are committed.
        failed: Runs of handlers that failed; each is tried again later, unless its event is dead.
        dead: Events that have failed for the last time.
        duration_ms: Milliseconds in all.
    """

    dispatched: int = 0
    handled: int = 0
    failed: int = 0
    dead: int = 0
    duration_ms: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the fields by name, as `dispatch --json` prints them and the task returns them."""
        return asdict(self)

    def as_counts(self) -> dict[str, int]:
        """Return the events and runs of handlers as the attributes of a span."""
        return {f"{name}_count": number for name, number in asdict(self).items() if name != "duration_ms"}


def dispatch() -> DispatchResult:
    """Run the handlers of this process on every event that is due, and return the counts.

    Any number of dispatchers may run at the same time. Events of a type without a handler here are left alone.

    Raises:
        MailglassReconcileError: A setting, the connection, a right or the schema is wrong. A handler's error is none
            of these: it is counted and logged, by its class.
    """
    return dispatch_within(None)


def dispatch_within(seconds: float | None, origin: Origin = "python") -> DispatchResult:
    """Dispatch, but begin no other batch after *seconds*; None is no limit. The history of runs keeps the *origin*."""
    runtime.load_imports()
    dispatcher = _Dispatcher(runtime.get_settings(), seconds)
    types = sorted(registry.types())
    if not types:
        return dispatcher.result
    with telemetry.span("dispatch") as span:
        try:
            with database_errors(), running.connected() as begin:
                dispatcher.run(begin, types.copy())
                _note(begin, dispatcher.result, types, origin)
        finally:
            telemetry.describe(span, dispatcher.result.as_counts())
    return dispatcher.result


class _Dispatcher:
    """One dispatcher; `result` has the counts so far."""

    def __init__(self, settings: Settings, seconds: float | None) -> None:
        self.result = DispatchResult()
        self._settings = settings
        self._began = time.monotonic()
        self._seconds = seconds
        self._size = BATCH_EVENTS

    def run(self, begin: Begin, types: list[str]) -> None:
        """Dispatch what is due, until nothing is."""
        while not self._expired():
            random.shuffle(types)
            new = self._claim(begin, types, self._size, tried=False)
            self._together(begin, new)
            tried = self._claim(begin, types, 1, tried=True)
            for claim in tried:
                self._alone(begin, claim)
            if not new and not tried:
                break
        self.result.duration_ms = round((time.monotonic() - self._began) * 1000)

    def _expired(self) -> bool:
        return self._seconds is not None and time.monotonic() - self._began > self._seconds

    def _claim(self, begin: Begin, types: Sequence[str], size: int, *, tried: bool) -> list[Claim]:
        claims = self._own(begin, lambda tx: outbox.claim(tx, types, size, tried=tried))
        for claim in claims:
            if claim.dead:
                self.result.dead += 1
                logger.error("event %s is dead: its last attempt ended with its process", claim.event_id)
        return [claim for claim in claims if not claim.dead]

    def _together(self, begin: Begin, claims: Sequence[Claim]) -> None:
        """Try new events in one transaction; if that fails, each by itself."""
        if not claims:
            return
        ran: list[Attempt] = []
        try:
            with begin() as work:
                settled = self._batch(work, claims, ran)
        except Exception as error:
            if not (ran or running.is_contention(error)):
                raise
            batch = counted(len(claims), "event")
            logger.warning("a batch of %s is tried one by one after %s", batch, type(error).__name__)
            for claim in claims:
                self._alone(begin, claim, ran)
        else:
            self._count(ran, settled)

    def _batch(self, work: Work, claims: Sequence[Claim], ran: list[Attempt]) -> dict[str, Settled]:
        began = time.monotonic()
        with self._locked(work, claims) as held:
            for row in held:
                if ran and time.monotonic() - began > BATCH_SECONDS:
                    break
                ran.append(Attempt(row.event_id, row.attempts, ()))
                for handler in running.missing(row):
                    ran[-1] = _after(ran[-1], handler, running.run(work, self._settings, handler, row))
            left = held[len(ran) :]
            self._size = max(1, len(ran)) if left else min(BATCH_EVENTS, 2 * self._size)
            with borrowed(work.ours, self._settings) as tx:
                outbox.give_back(tx, left)
                settled = outbox.settle(tx, ran, held[0].xact_id) if ran else {}
        if len(settled) < len(ran):
            raise EndedError
        return settled

    def _alone(self, begin: Begin, claim: Claim, before: Sequence[Attempt] = ()) -> None:
        """Try one event, each handler in a transaction of its own; *before* is what ran in a batch that has failed."""
        failed_before = {name for attempt in before if attempt.event_id == claim.event_id for name in attempt.failed}
        attempt = Attempt(claim.event_id, claim.attempts, ())
        for handler in registry.handlers_of(claim.type):
            ran, error = False, None
            try:
                with begin() as work, self._locked(work, [claim]) as held:
                    if not held:
                        return
                    # One that is done has committed by itself in the batch; if it failed all the same, it is repeated.
                    if handler.name in held[0].done and handler.name not in failed_before:
                        continue
                    ran = True
                    error = running.run(work, self._settings, handler, held[0])
            except Exception as raised:
                if not (ran or running.is_contention(raised)):
                    raise
                error = error or running.log_error(handler, claim.event_id, claim.attempts, raised)
            attempt = _after(attempt, handler, error)
        self._count([attempt], self._own(begin, lambda tx: outbox.settle(tx, [attempt])))

    def _count(self, attempts: Sequence[Attempt], settled: Mapping[str, Settled]) -> None:
        for attempt in attempts:
            if attempt.event_id not in settled:
                continue
            state, done = settled[attempt.event_id]
            undone = sorted(set(attempt.ran).difference(done))
            for name in undone:
                logger.warning("handler %s failed on event %s: its work was rolled back", name, attempt.event_id)
            self.result.handled += len(attempt.ran) - len(undone)
            self.result.failed += len(attempt.failed) + len(undone)
            self.result.dispatched += state == "dispatched"
            if state == "dead":
                self.result.dead += 1
                logger.error("event %s is dead after %d attempts", attempt.event_id, outbox.MOST_ATTEMPTS)

    @contextmanager
    def _locked(self, work: Work, claims: Sequence[Claim]) -> Iterator[list[Held]]:
        """Lock claimed rows and limit what handlers may take, until the end of the transaction or of the block."""
        with borrowed(work.ours, self._settings) as tx:
            limits = outbox.limit(tx, round(running.HANDLER_SECONDS * 1000))
            held = outbox.lock(tx, claims)
        yield held
        if work.nested:
            with borrowed(work.ours, self._settings) as tx:
                outbox.unlimit(tx, limits)

    def _own(self, begin: Begin, action: Callable[[Transaction], T]) -> T:
        """Run a transaction without handlers; one that contends with another is tried again, as READ COMMITTED.

        That is enough for claims and notes, and does not fail; SERIALIZABLE may be the database's default.
        """
        nested = contended = False
        for pause in (*CONTENTION_PAUSES, None):
            try:
                with begin() as work:
                    nested = work.nested
                    if contended:
                        work.ours.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    with borrowed(work.ours, self._settings) as tx:
                        return action(tx)
            except Exception as error:
                if pause is None or nested or not running.is_contention(error):
                    raise
                contended = True
                time.sleep(pause * (1 + random.random()))  # noqa: S311 - not a secret
        raise AssertionError("unreachable")


def _after(attempt: Attempt, handler: Registered, error: str | None) -> Attempt:
    if error is None:
        return attempt._replace(ran=(*attempt.ran, handler.name))
    return attempt._replace(failed=(*attempt.failed, handler.name), error=error)


_noted_at: WeakKeyDictionary[sa.Engine, dict[tuple[str, ...], float]] = WeakKeyDictionary()
"""When this process last left a row in the history of runs, by engine, and by origin and types."""


def _note(begin: Begin, result: DispatchResult, types: Sequence[str], origin: Origin) -> None:
    """Leave in the history of runs which types have handlers here; an idle dispatcher does so once a minute."""
    noted_at, key = _noted_at.setdefault(runtime.get_engine(), {}), (origin, *types)
    idle = not (result.handled or result.failed)
    if idle and time.monotonic() - noted_at.get(key, -IDLE_SECONDS) < IDLE_SECONDS:
        return
    run = Run("dispatch", origin, counts={"duration_ms": result.duration_ms}, handled_types=tuple(types))
    try:
        with begin() as work, borrowed(work.ours, runtime.get_settings()) as tx:
            runs.add(tx, run)
    except Exception as error:  # SQLAlchemy's or a framework's; the handlers have run
        logger.warning("this dispatch is missing from the history of runs: %s", type(error).__name__)
        return
    noted_at[key] = time.monotonic()


def dead_events(database: Database) -> list[dict[str, Any]]:
    """Return the events that died last, at most 1,000, with the class of each one's last error and who is done.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database.reading() as tx:
        return outbox.dead(tx, LISTED)


def retry(database: Database, event_id: UUID | None = None) -> int:
    """Let dead events, or one, be tried again as if they were new, and return how many; what was done stays done.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    wanted = {"event_id": None if event_id is None else str(event_id), "size": RETRY_ROWS}
    with database.connect() as connected:
        return connected.in_batches(outbox.RETRY, wanted)
