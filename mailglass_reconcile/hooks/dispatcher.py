"""The dispatcher: it runs each handler once for each event of the outbox.

An attempt is counted and committed first. Then, in one transaction of the application's own connection, handlers run,
each under a savepoint, and the row notes which of them are done. What is new is tried in batches; if a batch cannot be
committed, and for what was tried before, each handler of each event gets a transaction of its own, so that one that
kills its process, or its connection, takes nobody else with it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.hooks import connections, running
from mailglass_reconcile.hooks.connections import Begin, EndedError, Work
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.wording import counted
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import outbox
from mailglass_reconcile.store.borrowing import borrowed
from mailglass_reconcile.store.database import Transaction, in_batches
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.outbox import Attempt, Claim
from mailglass_reconcile.store.reading import reading

logger = logging.getLogger(__name__)

BATCH_EVENTS = 100
BATCH_SECONDS = 1.0
"""After this, a batch commits what it has done and gives back the rest."""
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

    Any number of dispatchers may run at once. Events of a type without a handler here are left alone.

    Raises:
        MailglassReconcileError: A setting, the connection, a right or the schema is wrong. A handler's error is none
            of these: it is counted and logged, by its class.
    """
    return dispatch_within(None)


def dispatch_within(seconds: float | None) -> DispatchResult:
    """Dispatch, but begin no other batch after *seconds*; None is no limit."""
    runtime.load_imports()
    dispatcher = _Dispatcher(runtime.get_settings(), seconds)
    with telemetry.span("dispatch") as span:
        try:
            with database_errors(), connections.connected() as begin:
                dispatcher.run(begin)
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

    def run(self, begin: Begin) -> None:
        """Dispatch what is due, until nothing is."""
        types = sorted(registry.types())
        while types and not self._expired():
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
        with begin() as work, self._ours(work) as tx:
            claims = outbox.claim(tx, types, size, tried=tried)
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
                states = self._batch(work, claims, ran)
        except Exception as error:
            if not ran:
                raise
            batch = counted(len(claims), "event")
            logger.warning("a batch of %s is tried one by one after %s", batch, type(error).__name__)
            for claim in claims:
                self._alone(begin, claim)
            return
        self.result.handled += sum(len(attempt.done) for attempt in ran)
        self.result.failed += sum(attempt.failed for attempt in ran)
        self._count(states)

    def _batch(self, work: Work, claims: Sequence[Claim], ran: list[Attempt]) -> dict[str, str]:
        began = time.monotonic()
        with self._ours(work) as tx:
            held = outbox.lock(tx, claims, round(running.HANDLER_SECONDS * 1000))
        for row in held:
            if ran and time.monotonic() - began > BATCH_SECONDS:
                break
            ran.append(Attempt(row.event_id, row.attempts, (), None))
            outcomes = {one.name: running.run(work, one, row) for one in running.missing(row)}
            errors = [error for error in outcomes.values() if error]
            done = tuple(name for name, error in outcomes.items() if error is None)
            ran[-1] = Attempt(row.event_id, row.attempts, done, errors[-1] if errors else None, len(errors))
        left = [Claim(row.event_id, row.attempts, row.type, False) for row in held[len(ran) :]]
        self._size = max(1, len(ran)) if left else min(BATCH_EVENTS, 2 * self._size)
        with self._ours(work) as tx:
            outbox.give_back(tx, left)
            states = outbox.settle(tx, ran, held[0].xact_id if held else None)
        if len(states) < len(ran):
            raise EndedError
        return states

    def _alone(self, begin: Begin, claim: Claim) -> None:
        """Try one event, each handler in a transaction of its own."""
        failure = None
        for handler in registry.handlers_of(claim.type):
            ran, error = False, None
            try:
                with begin() as work:
                    with self._ours(work) as tx:
                        held = outbox.lock(tx, [claim], round(running.HANDLER_SECONDS * 1000))
                    if not held:
                        return
                    if handler.name in held[0].done:
                        continue
                    ran = True
                    error = running.run(work, handler, held[0])
                    if error is None:
                        with self._ours(work) as tx:
                            if not outbox.note(tx, held[0], handler.name):
                                raise EndedError
            except Exception as raised:
                if not ran:
                    raise
                error = error or running.told(handler, claim.event_id, claim.attempts, raised)
            failure = error or failure
            self.result.handled += error is None
            self.result.failed += error is not None
        with begin() as work, self._ours(work) as tx:
            states = outbox.settle(tx, [Attempt(claim.event_id, claim.attempts, (), failure)])
        self._count(states)

    def _count(self, states: Mapping[str, str]) -> None:
        self.result.dispatched += sum(state == "dispatched" for state in states.values())
        for event_id in (event_id for event_id, state in states.items() if state == "dead"):
            self.result.dead += 1
            logger.error("event %s is dead after %d attempts", event_id, outbox.MOST_ATTEMPTS)

    @contextmanager
    def _ours(self, work: Work) -> Iterator[Transaction]:
        with borrowed(work.ours, self._settings) as tx:
            yield tx


def dead_events(engine: sa.Engine) -> list[dict[str, Any]]:
    """Return the events that died last, at most 1,000, with the class of each one's last error and who is done.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = runtime.get_settings()
    with reading(engine, settings) as tx:
        return outbox.dead(tx, LISTED)


def retry(engine: sa.Engine, event_id: UUID | None = None) -> int:
    """Let dead events, or one, be tried again as if they were new, and return how many; what was done stays done.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    wanted = {"event_id": None if event_id is None else str(event_id), "size": RETRY_ROWS}
    with database_errors(), connect(engine) as connection:
        return in_batches(connection, runtime.get_settings(), outbox.RETRY, wanted)
