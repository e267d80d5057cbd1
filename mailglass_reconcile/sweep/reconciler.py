"""The sweep: the way of the data, from the open orphans to the broadcast."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector
from mailglass_reconcile.errors import DatabaseUnavailableError, SchemaOutdatedError, translated
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import candidates, open_orphans
from mailglass_reconcile.store.database import Transaction, transaction, with_retries
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.runs import Kind, Origin, Run
from mailglass_reconcile.sweep import history, match, report, windows
from mailglass_reconcile.sweep.batch import link_batch
from mailglass_reconcile.sweep.examination import Examined
from mailglass_reconcile.sweep.reader import Reader
from mailglass_reconcile.sweep.result import SweepResult
from mailglass_reconcile.sweep.stock import Stock

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Sweep:
    """One run over the eligible open orphans; `result` has the counts so far at any moment."""

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        *,
        tenant_id: str | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        bounds: tuple[str | None, str | None] = (None, None),
        progress: Callable[[SweepResult], None] | None = None,
        recent: float | None = None,
        origin: Origin = "python",
        would_link: Callable[[Sequence[tuple[str, str]]], None] | None = None,
    ) -> None:
        """Prepare a sweep; nothing connects yet.

        Args:
            settings: Grace, maximum age, batch size, deadline, schema.
            publisher: Gets a message for both channels of each committed link.
            tenant_id: Sweep this tenant's orphans only.
            limit: Link at most this many.
            dry_run: Find and classify in read-only transactions; write and publish nothing.
            bounds: Sweep only what arrived after the first time and until the second, in UTC.
            progress: Called with the counts so far, after each batch.
            recent: Seconds between recent sweeps, if this is one: it looks at what is new or due again, within the
                interval or two seconds, and logs nothing that the full sweep says anyway.
            origin: Who asked for it, for the history of runs.
            would_link: Called in a dry run with pairs of orphan and delivery, a slice at a time.
        """
        self.result = SweepResult(tenant_id=tenant_id, dry_run=dry_run)
        self.in_batch = False
        """Whether a batch is between its claim and its count: only then it is known what was committed."""
        self._settings = settings
        self._publisher = publisher
        self._limit = limit
        self._progress = progress or (lambda result: None)
        self._recent = recent
        self._origin = origin
        self._kind: Kind = "recent" if recent is not None else "full" if bounds == (None, None) else "range"
        self._stock = Stock(counts=self._kind == "full")
        self._broken_off_by: BaseException | None = None
        seconds = settings.sweep_seconds if recent is None else min(settings.sweep_seconds, windows.seconds_for(recent))
        self._reader = Reader(settings, tenant_id, bounds, time.monotonic() + seconds, recent)
        self._would_link = would_link or (lambda pairs: None)
        self._wrote = False

    def run(self, engine: sa.Engine) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        Raises:
            MailglassReconcileError: Nothing was swept: no connection, a missing right, an outdated schema.
        """
        with self._reported(), connect(engine) as connection:
            return self._noted(connection)

    def run_on(self, connection: sa.Connection) -> SweepResult:
        """Sweep as `run` does, on an open connection without a transaction, which stays open."""
        with self._reported():
            return self._noted(connection)

    def _reported(self) -> AbstractContextManager[None]:
        return nullcontext() if self.result.dry_run else report.reported(self._kind, self._as_run)

    def _noted(self, connection: sa.Connection) -> SweepResult:
        try:
            return self._counted(connection)
        except BaseException as error:
            self._broken_off_by = error
            raise
        finally:
            self._note(connection)

    def _counted(self, connection: sa.Connection) -> SweepResult:
        began = time.monotonic()
        try:
            self._sweep(connection)
        except DBAPIError as error:
            if self._reader.window is None:
                raise translated(error) from None
            self.result.status = "failed"
            self._broken_off_by = translated(error)
            logger.error("the sweep broke off: %s", self._broken_off_by)
        finally:
            self._settle(connection)
            self.result.duration_ms = round((time.monotonic() - began) * 1000)
        return self.result

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self._reader.deadline = time.monotonic()

    def _sweep(self, connection: sa.Connection) -> None:
        while not self._reader.at_end and not (self._reader.slices and self._reader.expired()):
            with _collector_resting():
                self._sweep_slice(connection)

    def _sweep_slice(self, connection: sa.Connection) -> None:
        found, unreadable = self._reader.next_slice(connection)
        self.result.count(Counter(one.verdict.state for one in found if one.verdict.state != match.MATCHED))
        self.result.failed += len(unreadable)
        self._refuse(connection, unreadable)
        pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in found if one.verdict.delivery_id]
        linked = self._link(connection, windows.by_delivery(pairs))
        self._keep(connection, [one for one in found if one.orphan.event_id not in linked])
        if not self.result.dry_run:
            self._stock.take(connection, self._reader, found, linked)

    def _note(self, connection: sa.Connection) -> None:
        """Leave a row in the history of runs; if nothing was swept because the database or the table is down, none."""
        error = self._broken_off_by
        nowhere = isinstance(error, DatabaseUnavailableError | SchemaOutdatedError) and self._reader.window is None
        if self.result.dry_run or nowhere:
            return
        run = self._as_run(error)
        run.open_groups = self._stock.groups()
        history.note(connection, self._settings, run)

    def _as_run(self, error: BaseException | None) -> Run:
        """Return the sweep as the history has it, ended by *error* or by what broke it off before."""
        run = history.run_of(self.result, self._kind, self._origin, error or self._broken_off_by)
        run.linkable_since = self._stock.linkable_since
        if self._reader.window is None:
            run.remaining = None
        return run

    def _link(self, connection: sa.Connection, pairs: Sequence[tuple[str, str]]) -> set[str]:
        """Link *pairs* in batches, as far as the limit and the deadline go, and return the linked orphans' ids."""
        linked: set[str] = set()
        allowed = len(pairs) if self._limit is None else min(len(pairs), self._limit - self.result.linked)
        self.result.skipped_limit += len(pairs) - allowed
        if self.result.dry_run:
            self.result.linked += allowed
            self._would_link(pairs[:allowed])
            return linked
        for start in range(0, allowed, self._settings.batch_size):
            if self._reader.expired():
                break
            batch = pairs[start : min(start + self._settings.batch_size, allowed)]
            self.in_batch = self._wrote = True
            outcome = link_batch(connection, self._settings, batch, self._reader.expired)
            told = projector.broadcast(outcome.links, self._publisher.publish)
            self.result.add(outcome, told)
            linked.update(link.orphan_id for link in outcome.links)
            self.in_batch = False
            self._progress(self.result)
            if outcome.outage is not None:
                raise outcome.outage
            self._refuse(connection, outcome.failed)
        return linked

    def _keep(self, connection: sa.Connection, found: Sequence[Examined]) -> None:
        """Store the keys of what stays open, so that no later sweep computes them again."""
        new = {one.orphan.event_id: one.keys for one in found if one.keys.rule and one.keys is not one.orphan.keys}
        if new and not self.result.dry_run:
            settled = self._write(connection, lambda tx: set(candidates.store(tx, new)))
            self._wrote = self._wrote or bool(settled)
            # They were looked at, but another session has settled them.
            states = (one.verdict.state for one in found if one.orphan.event_id in settled)
            self.result.count({state: -number for state, number in Counter(states).items() if state != match.MATCHED})

    def _refuse(self, connection: sa.Connection, event_ids: Sequence[str]) -> None:
        """Let later sweeps look last at orphans that the database refuses."""
        if event_ids and not self.result.dry_run:
            self._write(connection, lambda tx: open_orphans.refuse(tx, event_ids))

    def _write(self, connection: sa.Connection, action: Callable[[Transaction], T]) -> T:
        def write() -> T:
            with transaction(connection, self._settings, probes_only=True) as tx:
                return action(tx)

        return with_retries(write)

    def _settle(self, connection: sa.Connection) -> None:
        """Close the books, and log what an operator should know."""
        window = self._reader.window
        if window is None:
            return
        complete = self._reader.at_end and not self._reader.expired() and self.result.status == "ok"
        if not complete and self.result.status == "ok":
            self.result.status = "partial"
        seen_at_once = complete and self._reader.slices == 1 and not self._wrote
        remaining = window.eligible if seen_at_once else self._reader.count(connection)
        self.result.unmatchable += window.unmatchable
        self.result.settle(window.eligible, remaining, complete=complete)
        self._reader.log_complaints()
        if self._recent is None:
            report.warn_of_mismatches(self.result)


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Spare Python's garbage collector the objects of a slice: many, all kept for now, and without cycles.

    It would walk through them, and all that the process holds, again and again: a third of a sweep's time in Python.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
