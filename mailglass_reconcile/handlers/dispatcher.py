"""The dispatcher: it calls each handler for each event of the outbox, until the handler has succeeded.

An attempt is counted and committed first. Then each handler of each event runs in a transaction of the application's
own connection, which holds nothing else: the row notes that the handler is done, the handler runs, COMMIT. What the
database holds then decides: if the record does not exist, the handler's work was undone with it, and the
attempt has failed. So a handler that kills its process, or its connection, takes no other's work with it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.handlers import running
from mailglass_reconcile.handlers.running import Begin, Work
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.handlers import Registered
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import handled, outbox, runs
from mailglass_reconcile.store.callers_transaction import borrowed
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.outbox import Held, Outcome, Settled
from mailglass_reconcile.store.runs import Origin, Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLAIMED_EVENTS = 100
"""How many new events a dispatcher claims at a time, at most."""
CLAIM_SECONDS = 1.0
"""After this, a dispatcher gives back what it has claimed and not begun."""
CONTENTION_PAUSES = (0.02, 0.1, 0.5)
IDLE_SECONDS = 60.0
SEEN_SECONDS = 60.0
"""How often a dispatcher that works looks whether its handlers' types are written down."""
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

    Any number of dispatchers may run at the same time. An error of a handler is counted and logged, by its class.
    Events of a type without a handler here are left alone.

    Raises:
        MailglassReconcileError: A setting, the connection, a privilege or the schema is wrong.
    """
    return dispatch_within(None)


def dispatch_within(seconds: float | None, origin: Origin = "python") -> DispatchResult:
    """Dispatch, but claim no more events after *seconds*; None is no limit. The history of runs keeps the *origin*."""
    runtime.load_imports()
    dispatcher = _Dispatcher(runtime.get_settings(), seconds)
    types = sorted(registry.types())
    if not types:
        return dispatcher.result
    with telemetry.span("dispatch") as span:
        try:
            with database_errors(), running.connected(own_process=origin != "python") as begin:
                dispatcher.run(begin, types)
                _note(begin, dispatcher.result, origin)
        finally:
            telemetry.describe(span, dispatcher.result.as_counts())
    return dispatcher.result


@dataclass(slots=True)
class _Attempt:
    """An attempt of an event: which handlers have ended, each with the class of its error, or with None."""

    row: Held
    handlers: list[Registered]
    ended: dict[str, str | None] = field(default_factory=dict)

    def undone(self, outcome: Outcome) -> list[str]:
        """Return the handlers of which nothing is kept."""
        return [name for name in self.ended if name not in outcome.done]

    def settled(self, outcome: Outcome) -> Settled:
        """Return how it ended, by what the database holds."""
        errors = [self.ended[name] for name in self.undone(outcome)]
        is_done = {one.name for one in self.handlers} <= set(outcome.done)
        error = None if is_done else (errors or [None])[-1] or outbox.ROLLED_BACK
        return Settled(self.row.event_id, self.row.attempts, error)


class _Dispatcher:
    """One dispatcher; `result` has the counts so far."""

    def __init__(self, settings: Settings, seconds: float | None) -> None:
        self.result = DispatchResult()
        self._settings = settings
        self._began = time.monotonic()
        self._seconds = seconds
        self._size = CLAIMED_EVENTS
        self._seen_at = -SEEN_SECONDS

    def run(self, begin: Begin, types: list[str]) -> None:
        """Dispatch what is due, until nothing is."""
        while not self._expired():
            self._see(begin, types)
            random.shuffle(types)
            new = self._claim(begin, types, self._size, tried=False)
            begun = self._try(begin, new)
            self._size = min(CLAIMED_EVENTS, 2 * self._size) if begun == len(new) else max(1, begun)
            # One at a time: it may be what has killed its process before.
            tried = self._claim(begin, types, 1, tried=True)
            self._try(begin, tried)
            if not new and not tried:
                break
        self.result.duration_ms = round((time.monotonic() - self._began) * 1000)

    def _expired(self) -> bool:
        return self._seconds is not None and time.monotonic() - self._began > self._seconds

    def _see(self, begin: Begin, types: Sequence[str]) -> None:
        """Write down that handlers of *types* run here, so that every process hands such events over."""
        if time.monotonic() - self._seen_at >= SEEN_SECONDS:
            self._own(begin, lambda tx: handled.see(tx, types))
            self._seen_at = time.monotonic()

    def _claim(self, begin: Begin, types: Sequence[str], size: int, *, tried: bool) -> list[Held]:
        def action(tx: Transaction) -> tuple[list[str], list[Held]]:
            claims = outbox.claim(tx, types, size, tried=tried)
            return [one.event_id for one in claims if one.dead], outbox.read(
                tx, [one for one in claims if not one.dead]
            )

        dead, held = self._own(begin, action)
        for event_id in dead:
            self.result.dead += 1
            logger.error("event %s is dead: its last attempt ended with its process", event_id)
        return held

    def _try(self, begin: Begin, rows: Sequence[Held]) -> int:
        """Run the handlers of claimed events, note how that ended, and return how many were begun in time."""
        began, attempts = time.monotonic(), list[_Attempt]()
        try:
            for row in rows:
                if attempts and time.monotonic() - began > CLAIM_SECONDS:
                    break
                attempts.append(_Attempt(row, registry.handlers_of(row.type)))
                for handler in attempts[-1].handlers:
                    if handler.name not in row.done:
                        self._run(begin, attempts[-1], handler)
        except BaseException:  # also Ctrl-C; the attempt that it ended counts, and is not settled
            with suppress(Exception):
                self._settle(begin, attempts[:-1], rows[len(attempts) :])
            raise
        self._settle(begin, attempts, rows[len(attempts) :])
        return len(attempts)

    def _run(self, begin: Begin, attempt: _Attempt, handler: Registered) -> None:
        """Run one handler for one event in a transaction of its own."""
        row, others = attempt.row, [one.name for one in attempt.handlers if one.name != handler.name]
        ran = False
        try:
            with begin() as work, self._limited(work) as tx:
                if not outbox.note(tx, row, handler.name, others):
                    return
                ran = True
                running.call(handler, work.connection, row)
        except Exception as error:  # an application's handler may fail in any way, which costs that handler only
            if not (ran or running.is_contention(error)):
                raise
            attempt.ended[handler.name] = running.log_error(handler, row.event_id, row.attempts, error)
        else:
            attempt.ended[handler.name] = None

    @contextmanager
    def _limited(self, work: Work) -> Iterator[Transaction]:
        """Limit what a handler may take, until the end of the transaction or of the block."""
        tx = Transaction(work.connection, self._settings)
        limits = outbox.limit(tx, running.HANDLER_SECONDS)
        yield tx
        if work.nested:
            outbox.unlimit(tx, limits)

    def _settle(self, begin: Begin, attempts: Sequence[_Attempt], left: Sequence[Held]) -> None:
        """Give back the claimed events that are *left*; of the others, ask the database how the attempts ended."""
        if not attempts and not left:
            return

        def action(tx: Transaction) -> tuple[dict[str, Outcome], dict[str, str]]:
            outbox.give_back(tx, left)
            held = outbox.outcomes(tx, [one.row.event_id for one in attempts])
            ended = [(one, held[one.row.event_id]) for one in attempts if one.row.event_id in held]
            waiting = [one.settled(outcome) for one, outcome in ended if outcome.state == "waiting"]
            return held, outbox.settle(tx, waiting)

        held, settled = self._own(begin, action)
        for attempt in attempts:
            if outcome := held.get(attempt.row.event_id):
                self._count(attempt, outcome, settled.get(attempt.row.event_id))

    def _count(self, attempt: _Attempt, outcome: Outcome, settled: str | None) -> None:
        row, undone = attempt.row, attempt.undone(outcome)
        for name, error in attempt.ended.items():
            if name in undone and error is None:
                logger.warning("handler %s failed on event %s: its work was rolled back", name, row.event_id)
            elif name not in undone and error is not None:
                logger.warning("handler %s is done with event %s: its work was committed", name, row.event_id)
        self.result.handled += len(attempt.ended) - len(undone)
        self.result.failed += len(undone)
        state = settled or (outcome.state if outcome.attempts == row.attempts else None)
        self.result.dispatched += state == "dispatched"
        if state == "dead":
            self.result.dead += 1
            logger.error("event %s is dead after %d attempts", row.event_id, outbox.MOST_ATTEMPTS)

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
                        work.connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    with borrowed(work.connection, self._settings) as tx:
                        return action(tx)
            except Exception as error:
                if pause is None or nested or not running.is_contention(error):
                    raise
                contended = True
                time.sleep(pause * (1 + random.random()))  # noqa: S311 - not a secret
        raise AssertionError("unreachable")


_noted_at: WeakKeyDictionary[sa.Engine, dict[Origin, float]] = WeakKeyDictionary()
"""When this process last left a row in the history of runs, by engine and origin."""


def _note(begin: Begin, result: DispatchResult, origin: Origin) -> None:
    """Leave a row in the history of runs; an idle dispatcher does so once a minute."""
    noted_at = _noted_at.setdefault(runtime.get_engine(), {})
    idle = not (result.handled or result.failed)
    if idle and time.monotonic() - noted_at.get(origin, -IDLE_SECONDS) < IDLE_SECONDS:
        return
    run = Run("dispatch", origin, counts={"duration_ms": result.duration_ms})
    try:
        with begin() as work, borrowed(work.connection, runtime.get_settings()) as tx:
            runs.add(tx, run)
    except Exception as error:  # SQLAlchemy's or a framework's; the handlers have run
        logger.warning("this dispatch is missing from the history of runs: %s", type(error).__name__)
        return
    noted_at[origin] = time.monotonic()


def retry(database: Database, event_id: UUID | None = None) -> int:
    """Let events that are dead or fail, or one, be tried again as if they were new, and return how many.

    What was done stays done.
    """
    wanted = {"event_id": None if event_id is None else str(event_id), "size": RETRY_ROWS}
    with database.connect() as connected:
        return connected.in_batches(outbox.RETRY, wanted)
