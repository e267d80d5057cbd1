"""The sweep: the way of the data, from the open orphans to the broadcast."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import (
    QUERY_CANCELED,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    SchemaOutdatedError,
    hint,
    is_of_data,
    sqlstate,
    translated,
)
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.rules.humanize import counted
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.store import ledger, open_orphans, privileges, repair, windows
from mailglass_reconcile.store.database import Connected, Database, Transaction, with_retries
from mailglass_reconcile.store.open_orphans import Place
from mailglass_reconcile.store.runs import Kind, Origin, Run
from mailglass_reconcile.sweep import history, window
from mailglass_reconcile.sweep.history import OpenGroups
from mailglass_reconcile.sweep.judge import Judged, judge, unchecked
from mailglass_reconcile.sweep.link import Notes, Pairs, link_batch
from mailglass_reconcile.sweep.result import SweepResult, mismatches
from mailglass_reconcile.sweep.window import Part, Window

T = TypeVar("T")

logger = logging.getLogger(__name__)

SLICE_ORPHANS = 10_000
"""Orphans whose keys and verdicts are in memory at once: about 10 MB."""


class Step(NamedTuple):
    """What a sweep has just done: the pairs of orphan and delivery of a batch, which a dry run would link."""

    pairs: Pairs


class Slice(NamedTuple):
    """Some orphans that were judged; how many were closed by then; and those that cannot be read."""

    judged: list[Judged]
    closed: int
    unreadable: list[str]


class Sweep:
    """One run over open orphans; `result` has the counts so far at any moment."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher | None,
        *,
        kind: Kind = "full",
        tenant_id: str | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        bounds: tuple[str | None, str | None] = (None, None),
        event_ids: Sequence[str] | None = None,
        ages: Sequence[tuple[float, float]] | None = None,
        seconds: float = math.inf,
        range_of: int | None = None,
        origin: Origin = "python",
    ) -> None:
        """Prepare a sweep; nothing connects yet.

        Args:
            database: Where, with grace, maximum age, batch size and deadline.
            publisher: Gets a message for both channels of each committed link; a dry run needs none.
            kind: What kind of run it is.
            tenant_id: Sweep this tenant's orphans only.
            limit: Link at most this many.
            dry_run: Judge in read-only transactions; write and publish nothing.
            bounds: Sweep only what arrived after the first time and until the second, in UTC.
            event_ids: Sweep these orphans only, even in their grace.
            ages: What a recent sweep looks at, as `open_window` takes it: it logs nothing that the full sweep reports.
            seconds: End after so long, if the setting's deadline is not earlier.
            range_of: The run of the sweep that was cut, if this one is a range of it.
            origin: Who asked for it, for the history of runs.
        """
        self.database = database
        self.result = SweepResult(tenant_id=tenant_id, dry_run=dry_run)
        self.in_batch = False
        """Whether a batch is between its claim and its count: only then it is unknown what was committed."""
        self._publisher = publisher
        self._kind: Kind = kind
        self._limit = limit
        self._bounds = bounds
        self._event_ids = event_ids
        self._ages = ages
        self._range_of = range_of
        self._origin: Origin = origin
        self._deadline = time.monotonic() + min(seconds, database.settings.sweep_seconds)
        self._window: Window | None = None
        self.open_groups: OpenGroups | None = None
        """What stays open, by state, tenant and provider; None if it is not counted."""
        self._parts: deque[Part] = deque()
        self._reached: Place | None = None
        self._closed = 0
        self._complete = False
        self._linkable_since: str | None = None
        self._failures: Counter[str] = Counter()
        self._broken_off_by: BaseException | None = None

    def run(self) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        Raises:
            MailglassReconcileError: Nothing was swept: no connection, a missing right, an outdated schema.
        """
        for _ in self.steps():
            pass
        return self.result

    def run_on(self, connected: Connected) -> SweepResult:
        """Sweep as `run` does, on an open connection without a transaction, which stays open."""
        for _ in self.steps(nullcontext(connected)):
            pass
        return self.result

    def steps(self, on: AbstractContextManager[Connected] | None = None) -> Iterator[Step]:
        """Sweep as `run` does, and yield after each batch; in a dry run, after each slice.

        Args:
            on: Gives the connection; None opens one.
        """
        began = time.monotonic()
        # A sweep that cannot connect is reported, too.
        with (
            nullcontext() if self.result.dry_run else history.reported(self._kind, self._as_run),
            on or self.database.connect() as connected,
        ):
            try:
                yield from self._sweep(connected)
            except (DBAPIError, DatabaseRefusedError) as error:
                self._break_off(connected, error)
            except BaseException as error:
                self._broken_off_by = error
                raise
            finally:
                self._settle()
                self.result.duration_ms = round((time.monotonic() - began) * 1000)
                self._note(connected)

    @property
    def eligible(self) -> int | None:
        """How many orphans are looked at; None before that is known."""
        return None if self._window is None else self._window.eligible

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self._deadline = time.monotonic()

    def _sweep(self, connected: Connected) -> Iterator[Step]:
        """Judge slice by slice, link what matches batch by batch, and keep the keys of what stays open."""
        for ids in self._ids(connected):
            with _collector_resting():
                found = self._judge(connected, ids)
                self._count(found)
                linked: set[str] = set()
                notes = unchecked(found.judged)
                for batch in self._batches(found.judged):
                    linked |= self._link(connected, batch, notes)
                    yield Step(batch)
                if not self.result.dry_run:
                    self._refuse(connected, found.unreadable)
                    self._keep(connected, [one for one in found.judged if one.orphan.event_id not in linked])
                if self.open_groups is not None:
                    self.open_groups.judged(found.judged, linked)
            if self._expired():
                return
        self._complete = True

    def _ids(self, connected: Connected) -> Iterator[list[str]]:
        """Yield the ids of what to judge, a slice at a time, part by part of the window."""
        if self._event_ids is not None:
            self._window = window.of_events(len(self._event_ids))
            yield from (
                list(self._event_ids[n : n + SLICE_ORPHANS]) for n in range(0, len(self._event_ids), SLICE_ORPHANS)
            )
            return
        packed: bytes | None = self._retried(lambda: self._open(connected))
        if self._window and self._window.survey and self._window.survey.emptied and not self.result.dry_run:
            removed = repair.remove_settled(connected, self.database.settings.batch_size)
            repair.remove_stray_ids(connected, self.database.settings.batch_size)
            logger.warning(
                "mailglass_events was emptied: %s closed", counted(removed, "open orphan was", "open orphans were")
            )
            packed = self._retried(lambda: self._open(connected))
        while self._parts:
            if packed is None:
                packed = self._retried(lambda: self._pass(connected))
            self._reached = None
            yield from windows.unpacked(packed, SLICE_ORPHANS)
            part = self._parts.popleft()
            if len(packed) == 16 * windows.MOST_IDS and self._reached:
                self._parts.appendleft(part.after(self._reached))
            packed = None

    def _open(self, connected: Connected) -> bytes:
        """Survey the window, and return the ids of its first part, of the same snapshot."""
        with connected.reading(self._left_ms()) as tx:
            full = self._kind == "full"
            opened = window.open_window(tx, self.result.tenant_id, self._bounds, self._ages, full=full)
            if self._window is None and opened.survey and self._ages is None:
                _warn(privileges.warning(opened.survey.creators, tx.schema), triggers=opened.survey.triggers)
            self._window, self._parts = opened, deque(opened.parts)
            self.open_groups = OpenGroups(opened) if self._kind == "full" or self._range_of else None
            return self._ids_of_part(tx)

    def _pass(self, connected: Connected) -> bytes:
        with connected.reading(self._left_ms()) as tx:
            return self._ids_of_part(tx)

    def _ids_of_part(self, tx: Transaction) -> bytes:
        if not self._parts or self._window is None:
            return b""
        return windows.ids_to_judge(tx, self._parts[0].slice, self._window.outdated, self._parts[0].orphans)

    def _judge(self, connected: Connected, ids: Sequence[str]) -> Slice:
        """Judge orphans in one snapshot. If a row cannot be read, they are halved until that row stands alone."""
        found = Slice([], 0, [])
        waiting = [ids]
        while waiting and not (found.judged and self._expired()):
            part = waiting.pop()
            try:
                judged = self._retried(lambda part=part: self._judged(connected, part))  # type: ignore[misc]
                found.judged.extend(judged)
                found = found._replace(closed=found.closed + len(part) - len(judged))
            except DBAPIError as error:
                privileges.require_rights(connected, error)
                if not is_of_data(error):
                    raise
                if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                else:
                    event_id = str(UUID(part[0]))
                    logger.error("orphan %s cannot be read (SQLSTATE %s); it stays open", event_id, sqlstate(error))
                    found.unreadable.append(event_id)
        return found

    def _judged(self, connected: Connected, ids: Sequence[str]) -> list[Judged]:
        with connected.reading(self._left_ms()) as tx:
            if self._window and self._window.survey and self._window.survey.emptied:  # a dry run closes nothing
                ids = list(ledger.types_of(tx, ids))
            return judge(tx, open_orphans.read(tx, ids))

    def _count(self, found: Slice) -> None:
        self.result.count(Counter(one.verdict.state for one in found.judged if one.verdict.state != MATCHED))
        self.result.failed += len(found.unreadable)
        self.result.skipped_held += found.closed
        self._closed += found.closed
        self._failures.update(one.keys.failure for one in found.judged if one.keys.failure)
        if found.judged:
            self._reached = found.judged[-1].orphan.place

    def _batches(self, judged: Sequence[Judged]) -> Iterator[Pairs]:
        """Yield what to link, batch by batch, as far as the limit and the deadline go."""
        pairs = _by_delivery(judged)
        allowed = len(pairs) if self._limit is None else min(len(pairs), self._limit - self.result.linked)
        self.result.skipped_limit += len(pairs) - allowed
        if self.result.dry_run:
            self.result.linked += allowed
            yield pairs[:allowed]
            return
        size = self.database.settings.batch_size
        for start in range(0, allowed, size):
            if self._expired():
                return
            yield pairs[start : min(start + size, allowed)]

    def _link(self, connected: Connected, pairs: Pairs, notes: Notes) -> set[str]:
        """Link a batch, publish what was committed, and return the linked orphans' ids."""
        if self.result.dry_run or self._publisher is None:
            by_id = [event_id for event_id, _ in pairs if event_id in notes]
            if by_id:
                self.result.linked_unchecked += self._read(connected, lambda tx: ledger.of_other_writers(tx, by_id))
            return set()
        self.in_batch = True
        batch = link_batch(connected, pairs, self._expired, notes)
        self.result.add(batch, projector.broadcast(batch.linked, self._publisher.publish))
        self._closed += len(batch.linked) + batch.settled
        self.in_batch = False
        if batch.outage is not None:
            raise batch.outage
        self._refuse(connected, batch.failed)
        return {event.event_id for event in batch.linked}

    def _keep(self, connected: Connected, left: Sequence[Judged]) -> None:
        """Store the keys of what stays open, so that no later sweep computes them again."""
        new = {one.orphan.event_id: one.keys for one in left if one.has_new_keys}
        if new:
            before = {one.orphan.event_id: one.orphan.keys.rule for one in left if one.orphan.event_id in new}
            outdated = {event_id: rule for event_id, rule in before.items() if rule}
            settled = set(self._write(connected, lambda tx: open_orphans.store_keys(tx, new, outdated)))
            # They were judged, but another session has closed them.
            gone = Counter(one.verdict.state for one in left if one.orphan.event_id in settled)
            self.result.count({state: -number for state, number in gone.items() if state != MATCHED})
            self.result.skipped_held += sum(number for state, number in gone.items() if state != MATCHED)
            self._closed += len(settled)
        pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in left if one.verdict.delivery_id]
        if pairs:
            self._note_lag(self._read(connected, lambda tx: open_orphans.linkable_since(tx, pairs)))

    def _refuse(self, connected: Connected, event_ids: Sequence[str]) -> None:
        """Let later sweeps look last at orphans that the database refuses."""
        if event_ids:
            self._write(connected, lambda tx: open_orphans.refuse(tx, event_ids))

    def _note_lag(self, since: str | None) -> None:
        self._linkable_since = min(filter(None, (since, self._linkable_since)), default=None)

    def _read(self, connected: Connected, action: Callable[[Transaction], T]) -> T:
        def read() -> T:
            with connected.reading(self._left_ms()) as tx:
                return action(tx)

        return with_retries(read)

    def _write(self, connected: Connected, action: Callable[[Transaction], T]) -> T:
        def write() -> T:
            with connected.writing() as tx:
                return action(tx)

        return with_retries(write)

    def _retried(self, action: Callable[[], T]) -> T:
        """Return what *action* returns; after a recent sweep comes the next one, which is soon enough."""
        return with_retries(action) if self._ages is None else action()

    def _expired(self) -> bool:
        return time.monotonic() >= self._deadline

    def _left_ms(self) -> int:
        return max(1_000, int((self._deadline - time.monotonic()) * 1000))

    def _break_off(self, connected: Connected, error: DBAPIError | DatabaseRefusedError) -> None:
        """Note what ended the sweep: the deadline in the middle of a statement, a missing right, or another fault."""
        cause = error if isinstance(error, DatabaseRefusedError) else self._cause(connected, error)
        if cause is None:
            return
        self._broken_off_by = cause
        if self._window is None:
            raise cause from None
        self.result.status = "failed"
        logger.error("the sweep failed: %s", cause)

    def _cause(self, connected: Connected, error: DBAPIError) -> MailglassReconcileError | None:
        if sqlstate(error) == QUERY_CANCELED and self._window and time.monotonic() >= self._deadline - 1.0:
            return None
        try:
            privileges.require_rights(connected, error)
        except DatabaseRefusedError as missing:
            return missing
        return translated(error)

    def _settle(self) -> None:
        """Give every eligible orphan a state, and log what an operator should know."""
        if self._window is None:
            return
        self.result.unmatchable += self._window.unmatchable
        self.result.settle(self._window.eligible, complete=self._complete)
        self.result.remaining = max(0, self._window.eligible - self._closed)
        if self._ages is None:
            for failure, orphans in self._failures.items():
                logger.error("%s (%s)", failure, counted(orphans, "orphan"))
            for line in mismatches(self.result):
                logger.warning("%s", line)

    def _note(self, connected: Connected) -> None:
        """Leave a row in the history of runs; if nothing was swept because the database or the table is down, none."""
        error = self._broken_off_by
        nowhere = isinstance(error, DatabaseUnavailableError | SchemaOutdatedError) and self._window is None
        if self.result.dry_run or nowhere:
            return
        run = self._as_run(error)
        if self._parts and self._parts[0].which == "fresh" and self._window is not None and not self._complete:
            self._note_unseen(connected, run)
        run.open_groups = None if self.open_groups is None else self.open_groups.as_groups()
        run.position = self._next_position()
        history.note(connected, run, range_of=self._range_of)

    def _note_unseen(self, connected: Connected, run: Run) -> None:
        """Count what was never looked at towards the lag."""
        unseen = self._parts[0] if self._reached is None else self._parts[0].after(self._reached)
        try:
            with connected.reading(history.TIMEOUT_MS) as tx:
                self._note_lag(windows.first_eligible(tx, unseen.slice))
        except (DBAPIError, MailglassReconcileError) as error:
            logger.debug("cannot read since when orphans wait: %s", type(error).__name__)
        run.linkable_since = self._linkable_since

    def _next_position(self) -> dict[str, Any] | None:
        """Return where the next full sweep continues, or None if this one has looked at everything."""
        swept = self._window
        if self._kind != "full" or self._complete or swept is None or swept.survey is None:
            return None
        if not self._parts or self._parts[0].which == "refused":
            return None
        return window.next_position(swept, swept.survey, self._parts[0], self._reached).as_json()

    def _as_run(self, error: BaseException | None) -> Run:
        """Return the sweep as the history has it, ended by *error* or by what broke it off before."""
        run = history.run_of(self.result, self._kind, self._origin, error or self._broken_off_by)
        run.linkable_since = self._linkable_since
        if self._window is None:
            run.remaining = None
        return run


def prepare(
    tenant_id: str | None = None,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    bounds: tuple[str | None, str | None] = (None, None),
    range_of: int | None = None,
    origin: Origin = "python",
) -> Sweep:
    """Return a full sweep, or one of a range, not yet begun, on this process's settings and Redis.

    `reconcile` and `Sweep` describe the arguments.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        ValueError: *limit* is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    runtime.load_imports(to_read=dry_run)
    return Sweep(
        runtime.database(),
        Publisher(runtime.get_redis()),
        kind="full" if bounds == (None, None) else "range",
        tenant_id=tenant_id,
        limit=limit,
        dry_run=dry_run,
        bounds=bounds,
        range_of=range_of,
        origin=origin,
    )


def reconcile(tenant_id: str | None = None, limit: int | None = None) -> SweepResult:
    """Link every eligible orphan whose delivery exists, and broadcast each link; return the counts.

    Takes no lock: any number of sweeps may run at the same time, in any number of processes.

    Args:
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many; the rest stays open.

    Returns:
        The counts. If the sweep failed half-way, its `status` is `failed`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a right or the schema is wrong.
        ValueError: *limit* is below 1.
    """
    return prepare(tenant_id, limit).run()


def open_groups(database: Database, tenant_id: str | None = None) -> list[dict[str, Any]]:
    """Count the eligible orphans now by state, tenant and provider: what a sweep would find, without linking anything.

    It judges every one that may match, which takes seconds if a million are open.

    Args:
        database: Where.
        tenant_id: Of this tenant only; None is all tenants.
    """
    sweep = Sweep(database, None, tenant_id=tenant_id, dry_run=True)
    sweep.run()
    return sweep.open_groups.as_groups() if sweep.open_groups else []


def _by_delivery(judged: Sequence[Judged]) -> list[tuple[str, str]]:
    """Return matched pairs of orphan and delivery in their order, but a delivery's together, behind its first.

    One batch then projects them at once.
    """
    together: dict[str, list[tuple[str, str]]] = {}
    for one in judged:
        if one.verdict.delivery_id:
            together.setdefault(one.verdict.delivery_id, []).append((one.orphan.event_id, one.verdict.delivery_id))
    return list(chain.from_iterable(together.values()))


def _warn(warning: str | None, *, triggers: bool) -> None:
    """Log what an operator should know of the schema before anything is swept."""
    if warning:
        logger.warning("%s", warning)
    if not triggers:
        logger.warning(
            hint(
                "the triggers on mailglass_events are missing or disabled, so new orphans are not seen: run"
                " `mailglass-reconcile migrate`, then `mailglass-reconcile prune`"
            )
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
