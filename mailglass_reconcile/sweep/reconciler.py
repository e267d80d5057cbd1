"""The sweep: the way of the data, from the open orphans to the broadcast."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import is_of_data, sqlstate, translated
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import candidates, open_orphans, privileges
from mailglass_reconcile.store.database import Transaction, connect, transaction, with_retries
from mailglass_reconcile.store.model import Open
from mailglass_reconcile.sweep import examination, match, windows
from mailglass_reconcile.sweep.batch import link_batch
from mailglass_reconcile.sweep.examination import Examined
from mailglass_reconcile.sweep.result import SweepResult
from mailglass_reconcile.sweep.windows import Part, Window

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
        """
        self.result = SweepResult(tenant_id=tenant_id, dry_run=dry_run)
        self._settings = settings
        self._publisher = publisher
        self._limit = limit
        self._bounds = bounds
        self._progress = progress or (lambda result: None)
        self._deadline = time.monotonic() + settings.sweep_seconds
        self._window: Window | None = None
        self._complete = False
        self._slices = 0
        self._wrote = False
        self._complaints: Counter[str] = Counter()
        self.in_batch = False
        """Whether a batch is between its claim and its count: only then it is known what was committed."""

    def run(self, engine: sa.Engine) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        Raises:
            MailglassReconcileError: Nothing was swept: no connection, a missing right, an outdated schema.
        """
        began = time.monotonic()
        with connect(engine) as connection:
            try:
                self._sweep(connection)
            except DBAPIError as error:
                if self._window is None:
                    raise translated(error) from None
                self.result.status = "failed"
                logger.error("the sweep broke off: %s", translated(error))
            finally:
                self._settle(connection)
                self.result.duration_ms = round((time.monotonic() - began) * 1000)
        return self.result

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self._deadline = time.monotonic()

    def _sweep(self, connection: sa.Connection) -> None:
        rest: list[Part] | None = None
        while rest is None or (rest and not self._expired()):
            with _collector_resting():
                found, rest = self._look(connection, rest)
                pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in found if one.verdict.delivery_id]
                linked = self._linked(connection, windows.by_delivery(pairs))
                self._keep(connection, [one for one in found if one.orphan.event_id not in linked])
        self._complete = not rest and not self._expired()
        if not self._complete:
            self.result.status = "partial"

    def _expired(self) -> bool:
        return time.monotonic() >= self._deadline

    def _reading(self, connection: sa.Connection) -> AbstractContextManager[Transaction]:
        left_ms = max(1_000, int((self._deadline - time.monotonic()) * 1000))
        return transaction(
            connection, self._settings, read_only=True, snapshot=True, probes_only=True, statement_timeout_ms=left_ms
        )

    def _look(self, connection: sa.Connection, parts: list[Part] | None) -> tuple[list[Examined], list[Part]]:
        """Examine the next slice of *parts*, and return what is left; the first time, survey what there is to do.

        All that is read of a slice is of one moment. If a row cannot be read, the slice is halved until that row stands
        alone.
        """
        self._slices += 1

        def read(*, examined: bool = True) -> tuple[list[Open], list[Examined], list[Part]]:
            with self._reading(connection) as tx:
                left = self._survey(tx) if parts is None else parts
                if not left or self._window is None:
                    return [], [], []
                orphans, left = windows.next_orphans(tx, self._window, left)
                return orphans, self._examine(tx, orphans) if examined else [], left

        try:
            _, found, left = with_retries(read)
        except DBAPIError as error:
            if not is_of_data(error):
                raise
            orphans, _, left = with_retries(partial(read, examined=False))
            found = self._halved(connection, orphans)
        self.result.count(Counter(one.verdict.state for one in found if one.verdict.state != match.MATCHED))
        return found, left

    def _survey(self, tx: Transaction) -> list[Part]:
        self._window = window = windows.survey(
            tx, self._settings, *examination.marks(), self.result.tenant_id, self._bounds
        )
        warning = privileges.warning(tx)
        if warning:
            logger.warning("%s", warning)
        if not window.survey.triggers:
            logger.warning(
                "the triggers on mailglass_events are missing or disabled, so new orphans are not seen: run"
                " `mailglass-reconcile migrate`, then `mailglass-reconcile prune`"
            )
        self.result.unmatchable = window.unmatchable
        return window.parts

    def _examine(self, tx: Transaction, orphans: Sequence[Open]) -> list[Examined]:
        complaints: list[str] = []
        raw_webhooks = self._window is not None and self._window.survey.raw_webhooks
        found = examination.examine(tx, orphans, raw_webhooks=raw_webhooks, complain=complaints.append)
        self._complaints.update(complaints)
        return found

    def _halved(self, connection: sa.Connection, orphans: Sequence[Open]) -> list[Examined]:
        """Examine *orphans* half by half, of which some cannot be read; those are reported, counted and left open."""
        found: list[Examined] = []
        waiting = [orphans]
        while waiting and not self._expired():
            part = waiting.pop()
            try:
                with self._reading(connection) as tx:
                    found += self._examine(tx, part)
            except DBAPIError as error:
                if not is_of_data(error):
                    raise
                if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                else:
                    event_id = part[0].event_id
                    logger.error("orphan %s cannot be read (SQLSTATE %s); it stays open", event_id, sqlstate(error))
                    self.result.failed += 1
                    self._refuse(connection, [event_id])
        return found

    def _linked(self, connection: sa.Connection, pairs: Sequence[tuple[str, str]]) -> set[str]:
        """Link *pairs* in batches, as far as the limit and the deadline go, and return the linked orphans' ids."""
        linked: set[str] = set()
        allowed = len(pairs) if self._limit is None else min(len(pairs), self._limit - self.result.linked)
        self.result.skipped_limit += len(pairs) - allowed
        if self.result.dry_run:
            self.result.linked += allowed
            return linked
        for start in range(0, allowed, self._settings.batch_size):
            if self._expired():
                break
            batch = pairs[start : min(start + self._settings.batch_size, allowed)]
            self.in_batch = self._wrote = True
            outcome = link_batch(connection, self._settings, batch, self._expired)
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
            with transaction(connection, self._settings, probes_only=True) as tx:
                settled = set(candidates.store(tx, new))
            # They were looked at, but whoever settled them has counted them.
            states = (one.verdict.state for one in found if one.orphan.event_id in settled)
            self.result.count({state: -number for state, number in Counter(states).items() if state != match.MATCHED})

    def _refuse(self, connection: sa.Connection, event_ids: Sequence[str]) -> None:
        """Count orphans that the database refuses, and let later sweeps look at them last."""
        if event_ids and not self.result.dry_run:
            with transaction(connection, self._settings, probes_only=True) as tx:
                open_orphans.refuse(tx, event_ids)

    def _settle(self, connection: sa.Connection) -> None:
        """Close the books; the count of what remains is None if it cannot be had."""
        if self._window is None:
            return
        remaining: int | None = self._window.eligible
        if self._slices > 1 or self._wrote or not self._complete:
            try:
                with self._reading(connection) as tx:
                    remaining = open_orphans.count(tx, self._window.whole)
            except DBAPIError as error:
                remaining = None
                logger.warning("cannot count what remains open: %s", translated(error))
        self.result.settle(self._window.eligible, remaining, complete=self._complete)
        for complaint, orphans in self._complaints.items():
            logger.error("%s (%d orphans)", complaint, orphans)
        self._warn_of_mismatches()

    def _warn_of_mismatches(self) -> None:
        if self.result.tenant_mismatch:
            logger.warning(
                "%d orphans match only another tenant's deliveries and were not linked; if their tenant is `default`,"
                " perhaps Mailglass lacks resolve_webhook_tenant",
                self.result.tenant_mismatch,
            )
        if self.result.recipient_mismatch:
            logger.warning(
                "%d orphans match only another recipient's deliveries and were not linked",
                self.result.recipient_mismatch,
            )


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


def prepare(
    tenant_id: str | None = None,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    bounds: tuple[str | None, str | None] = (None, None),
    progress: Callable[[SweepResult], None] | None = None,
) -> Sweep:
    """Return a sweep, not yet begun, on this process's settings and Redis; `reconcile` and `Sweep` say the arguments.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        ValueError: *limit* is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    runtime.load_imports()
    return Sweep(
        runtime.get_settings(),
        Publisher(runtime.get_redis()),
        tenant_id=tenant_id,
        limit=limit,
        dry_run=dry_run,
        bounds=bounds,
        progress=progress,
    )


def reconcile(tenant_id: str | None = None, limit: int | None = None) -> SweepResult:
    """Link every eligible orphan whose delivery is there, and broadcast each link; return the counts.

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
    return prepare(tenant_id, limit).run(runtime.get_engine())
