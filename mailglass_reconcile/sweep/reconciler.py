"""The sweep: the way of the data, from the open orphans to the broadcast."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import (
    QUERY_CANCELED,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidArgumentError,
    SchemaOutdatedError,
    sqlstate,
    translate,
)
from mailglass_reconcile.linking.link import ExtraMetadata, Pairs, link_batch
from mailglass_reconcile.linking.matcher import OrphanMatch, unchecked_metadata
from mailglass_reconcile.mailglass_compat import unchecked_links
from mailglass_reconcile.pubsub import Published, Publisher
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.rules.states import OUTCOMES, SKIPPED, SweepStatus
from mailglass_reconcile.store.database import Database, OpenConnection, Transaction, with_retries
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.queries.selection import (
    EVERYTHING,
    Group,
    OrphanFilter,
    Part,
    Selection,
    Window,
    as_groups,
    make_part,
    open_window,
    select_next_first,
    select_orphans,
)
from mailglass_reconcile.store.tables import open_orphans, stored_keys
from mailglass_reconcile.store.tables.open_orphans import Cursor, OrphanRow
from mailglass_reconcile.store.tables.runs import COUNTS, Origin, Run, RunKind
from mailglass_reconcile.store.tables.stored_keys import StoredKeys
from mailglass_reconcile.sweep import garbage, reading, run_log
from mailglass_reconcile.sweep.background_iterator import run_ahead
from mailglass_reconcile.sweep.counters import SweepCounters
from mailglass_reconcile.sweep.reading import ChunkReader, SliceResult
from mailglass_reconcile.sweep.result import SweepResult, format_mismatches

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False, kw_only=True)
class Sweep:
    """One run over open orphans; it connects only when it runs.

    Attributes:
        database: The database, its limits, and the settings: grace, maximum age, batch size and deadline.
        publisher: Gets a message for both channels of each committed link; a dry run needs none.
        kind: The kind of run.
        tenant_id: Sweep this tenant's orphans only.
        limit: Stop after so many links.
        dry_run: Match in read-only transactions; write and publish nothing.
        bounds: Sweep only what arrived after the first time and until the second, in UTC.
        only: Sweep only the orphans that pass this filter.
        event_ids: Sweep these orphans, of any age: together with those that pass the filter, if there is one.
        ages: The oldest and the youngest age in seconds; None is from the grace to the maximum age.
        seconds: A time limit, if it ends before the deadline of the settings.
        range_of: The run of the sweep that was divided, if this one is a range of it.
        origin: The origin of the run, for the history.
        counters: The counts so far.
        window: The window of the sweep; None until it is read.
        has_jobs: True if a linked event has jobs for handlers.
        in_batch: True while a batch is linked and not counted yet: only then it is unknown what was committed.
        error: The error that ended the sweep early.
    """

    database: Database = field(kw_only=False)
    publisher: Publisher | None = field(kw_only=False)
    kind: RunKind = "full"
    tenant_id: str | None = None
    limit: int | None = None
    dry_run: bool = False
    bounds: tuple[str | None, str | None] = (None, None)
    only: OrphanFilter = EVERYTHING
    event_ids: Sequence[str] = ()
    ages: tuple[float, float] | None = None
    seconds: float = math.inf
    range_of: int | None = None
    origin: Origin = "python"

    def __post_init__(self) -> None:
        """Begin to count: the deadline is that of this moment."""
        self.counters = SweepCounters(self.database.limits.named_groups)
        self.window: Window | None = None
        self.has_jobs = self.in_batch = False
        self.error: BaseException | None = None
        self._started_at = time.monotonic()
        self._ends_at = self._started_at + min(self.seconds, self.database.settings.sweep_seconds)
        self._duration_ms = 0
        self._messages = Published()
        self._unseen_since: str | None = None
        self._linkable_since: str | None = None
        self._failures: Counter[str] = Counter()

    def run(self, on: AbstractContextManager[OpenConnection] | None = None) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        *on* gives a connection without a transaction; None opens one.
        """
        for _ in self.batches(on):
            pass
        return self.result

    def batches(self, on: AbstractContextManager[OpenConnection] | None = None) -> Iterator[Pairs]:
        """Sweep as `run` does, and yield each batch's pairs of orphan and delivery, or in a dry run each slice's.

        After each slice it yields no pairs: then all of it is processed.
        """
        self._started_at = time.monotonic()
        # A sweep that cannot connect is reported, too.
        with (
            # In an application's process the collector is the application's.
            nullcontext() if self.origin == "python" else garbage.collecting_seldom(),
            nullcontext() if self.dry_run else run_log.reporting(self.kind, self._as_run),
            on or self.database.connect() as connected,
        ):
            try:
                parts, matched = self._select(connected)
                with self._match(connected, parts) if matched is None else nullcontext(iter(matched)) as slices:
                    for slice_ in slices:
                        if self.is_over():
                            break
                        yield from self._process(connected, slice_)
                        yield ()
                        if self._is_at_limit():
                            break
                # More checked orphans than fit into memory are left to the next sweep.
                self.counters.complete = not self.is_over() and self.counters.processed >= self.counters.selected
                if self._is_at_limit():
                    self.counters.add("skipped_limit", max(0, self.counters.selected - self.counters.processed))
            except (DBAPIError, DatabaseRefusedError) as error:
                self._fail(connected, error)
            except BaseException as error:
                self.error = error
                raise
            finally:
                if self.publisher is not None:
                    self._messages = self.publisher.wait()
                self._duration_ms = round((time.monotonic() - self._started_at) * 1000)
                self._record(connected)

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self._ends_at = time.monotonic()
        self.counters.complete = False

    def is_over(self) -> bool:
        """Return True if the deadline has passed: no further work may begin."""
        return time.monotonic() >= self._ends_at

    def _is_at_limit(self) -> bool:
        return self.limit is not None and self.counters.linked >= self.limit

    @property
    def is_recent(self) -> bool:
        """True for a recent sweep, which leaves log lines to the full sweep."""
        return self.kind == "recent"

    def _select(self, connected: OpenConnection) -> tuple[list[Part], list[SliceResult] | None]:
        """Select the orphans to match; few are matched at once, in the same transaction."""
        self.window, selection, matched = self._read(connected, self._read_window)
        self._unseen_since = selection.unseen_since
        if not self.is_recent:
            self.window.warn()
        self.counters.start(selection)
        return selection.parts, matched

    def _read_window(self, tx: Transaction) -> tuple[Window, Selection, list[SliceResult] | None]:
        began = time.monotonic()
        window = open_window(tx, ages=self.ages, bounds=self.bounds, counted=not self.is_recent)
        selection = Selection([], Counter(), Counter())
        if self.only != EVERYTHING or not self.event_ids:
            most_checked = tx.limits.most_checked if self.is_recent else None
            selection = select_orphans(tx, window, self.tenant_id, only=self.only, most_checked=most_checked)
        if self.event_ids:
            selection.parts.append(make_part(self.event_ids))
            selection.selected[Group(None, None, None)] += len(self.event_ids)
        of_any_age = bool(self.event_ids)
        return window, selection, reading.match_at_once(tx, began, selection.parts, of_any_age=of_any_age)

    def _next_first(self, tx: Transaction, before: Cursor) -> Part | None:
        return None if self.window is None else select_next_first(tx, self.window, self.tenant_id, before, self.only)

    @contextmanager
    def _match(self, connected: OpenConnection, parts: Sequence[Part]) -> Iterator[Iterator[SliceResult]]:
        """Match slice by slice; in a full sweep of several, on a second connection, while the one before is linked.

        A sweep for which that connection cannot be opened does without, and one with a limit, which needs no more.
        """
        is_small = self.limit is not None or self.counters.selected <= self.database.limits.slice_orphans
        if self.is_recent or self.dry_run or is_small:
            yield self._slices(connected, parts)
            return
        with self.database.second_connection() as second:
            if second is None:
                yield self._slices(connected, parts)
                return
            with run_ahead(self._slices(second, parts), second.cancel) as slices:
                yield slices

    def _slices(self, connected: OpenConnection, parts: Sequence[Part]) -> Iterator[SliceResult]:
        """Yield the matched slices until the deadline; a part too large for memory continues after its last id."""
        reader = ChunkReader(connected, self._timeout_ms, self.is_over)
        for part in parts:
            following: Part | None = part
            while following is not None:
                for ids in following.slices(self.database.limits.slice_orphans):
                    if self.is_over():
                        return
                    yield reading.match_slice(reader, ids, self._retry, of_any_age=bool(self.event_ids))
                last = following.last
                following = self._read(connected, partial(self._next_first, before=last)) if last else None

    def _process(self, connected: OpenConnection, slice_: SliceResult) -> Iterator[Pairs]:
        """Link the matches of a slice, yield each batch, and store the states of the others; count each orphan."""
        counters = self.counters
        counters.mark_processed(_stored_group(match.orphan) for match in slice_.matches)
        matches = [match for match in slice_.matches if self.only.accepts(match.keys, match.result.delivery_id)]
        counters.selected -= len(slice_.matches) - len(matches)
        counters.add("skipped_held", slice_.closed, closed=slice_.closed)
        counters.add("failed", len(slice_.unreadable))
        counters.add_states(match.result.state for match in matches if match.result.state != MATCHED)
        self._failures.update(match.keys.failure for match in matches if match.keys.failure)
        closed: set[str] = set()
        extra_metadata = unchecked_metadata(matches)
        for batch in self._cut_batches(matches):
            closed |= self._link(connected, batch, extra_metadata)
            yield batch
        remaining = [match for match in matches if match.orphan.event_id not in closed]
        counters.add_open(_open_group(match) for match in remaining)
        if not self.dry_run:
            self._mark_failed(connected, slice_.unreadable)
            self._store(connected, remaining)

    def _cut_batches(self, matches: Sequence[OrphanMatch]) -> Iterator[Pairs]:
        """Yield the pairs to link, batch by batch, until the limit is linked or the deadline has passed.

        The caller counts a batch before it takes the next one: what another session holds does not use up the limit.
        """
        pairs = _by_delivery(matches)
        size = len(pairs) if self.dry_run else self.database.settings.batch_size
        start = 0
        while start < len(pairs) and not self._is_at_limit():
            if self.is_over():
                return
            allowed = size if self.limit is None else min(size, self.limit - self.counters.linked)
            yield pairs[start : start + allowed]
            start += allowed
        self.counters.add("skipped_limit", len(pairs[start:]))

    def _link(self, connected: OpenConnection, pairs: Pairs, extra_metadata: ExtraMetadata) -> set[str]:
        """Link a batch, publish its committed links, and return the ids of the orphans that it closed."""
        if self.dry_run or self.publisher is None:
            with_metadata = [event_id for event_id, _ in pairs if event_id in extra_metadata]
            unchecked = self._read(connected, lambda tx: unchecked_links.count_unchecked(tx, with_metadata))
            self.counters.add("linked", len(pairs), unchecked=unchecked)
            return set()
        if self.event_ids:
            self._write(connected, lambda tx: open_orphans.reopen(tx, [event_id for event_id, _ in pairs]))
        self.in_batch = True
        batch = link_batch(connected, pairs, self.is_over, extra_metadata)
        self.publisher.publish([projector.make_message(event) for event in batch.linked])
        self.counters.add_batch(batch)
        self.has_jobs = self.has_jobs or any(event.handled for event in batch.linked)
        self.in_batch = False
        if batch.outage is not None:
            raise batch.outage
        self._mark_failed(connected, batch.failed)
        return set(batch.closed)

    def _store(self, connected: OpenConnection, remaining: Sequence[OrphanMatch]) -> None:
        """Store new keys and states of orphans that stay open, and record since when they could have been linked."""
        with_new_keys = {match.orphan.event_id: match for match in remaining if match.has_new_keys}
        if with_new_keys:
            self._store_keys(connected, with_new_keys)
        # A rule that failed changes nothing over stored keys.
        states = {
            match.orphan.event_id: (match.result.state, match.keys.rank)
            for match in remaining
            if not match.has_new_keys
            and match.result.state != match.orphan.state
            and match.keys.rank == match.orphan.keys.rank
        }
        if states:
            self._write(connected, lambda tx: open_orphans.store_states(tx, states))
        pairs = [(match.orphan.event_id, match.result.delivery_id) for match in remaining if match.result.delivery_id]
        if pairs:
            self._update_lag(self._read(connected, lambda tx: open_orphans.linkable_since(tx, pairs)))

    def _store_keys(self, connected: OpenConnection, matches: Mapping[str, OrphanMatch]) -> None:
        """Store keys and states by orphan, so that no later sweep computes them again."""
        computed = {event_id: StoredKeys(match.keys, match.result.state) for event_id, match in matches.items()}
        ranks_before = {event_id: match.orphan.keys.rank for event_id, match in matches.items()}
        self._write(connected, lambda tx: stored_keys.store(tx, computed, ranks_before))

    def _mark_failed(self, connected: OpenConnection, event_ids: Sequence[str]) -> None:
        """Let later sweeps look last at orphans that the database refuses."""
        if event_ids:
            self._write(connected, lambda tx: open_orphans.mark_failed(tx, event_ids))

    def _update_lag(self, since: str | None) -> None:
        """Keep the earliest time since which an open orphan could have been linked."""
        self._linkable_since = min(filter(None, (since, self._linkable_since)), default=None)

    def _fail(self, connected: OpenConnection, error: DBAPIError | DatabaseRefusedError) -> None:
        """Set the error that ended the sweep: a missing privilege or another fault; the deadline is none."""
        if isinstance(error, DBAPIError):
            if sqlstate(error) == QUERY_CANCELED and self.window is not None and time.monotonic() >= self._ends_at - 1:
                return
            try:
                privileges.require_privileges(connected, error)
            except DatabaseRefusedError as privilege_error:
                error = privilege_error
        self.error = cause = translate(error) if isinstance(error, DBAPIError) else error
        if self.window is None:
            raise cause from None
        logger.error("the sweep failed: %s", cause)

    def _record(self, connected: OpenConnection) -> None:
        """Log failed key rules and mismatches, and add a row to the history of runs.

        If nothing was swept because the database or the table is down, there is no row.
        """
        has_started = self.window is not None
        if has_started and not self.is_recent:
            for failure, orphans in self._failures.items():
                logger.error("%s (%s)", failure, pluralize(orphans, "orphan"))
            for mismatch in format_mismatches(self.result):
                logger.warning("%s", mismatch)
        nowhere = isinstance(self.error, DatabaseUnavailableError | SchemaOutdatedError) and not has_started
        if self.dry_run or nowhere:
            return
        if self.counters.misses_unseen:
            self._update_lag(self._unseen_since)
        run = self._as_run(self.error)
        if self.window is not None and self.kind in ("full", "range"):
            run.open_groups = as_groups(self.counters.open_groups())
            run.covered_until = self.window.until
        run_log.add_run(connected, run, range_of=self.range_of)

    def _as_run(self, error: BaseException | None) -> Run:
        """Make the sweep's row for the history of runs; *error* ended the sweep, if no earlier one did."""
        self.error = self.error or error
        result = self.result
        return Run(
            self.kind,
            self.origin,
            result.shown_tenant,
            result.status,
            counts={name: getattr(result, name, 0) for name in COUNTS},
            remaining=None if self.window is None else result.remaining,
            linkable_since=self._linkable_since,
            covered=self.counters.complete,
            error=None if self.error is None else type(self.error).__name__,
            began=self._started_at,
        )

    @property
    def result(self) -> SweepResult:
        """The counts as they are now: everything eligible has exactly one outcome."""
        outcomes = self.counters.outcomes()
        scanned = outcomes.total()
        outcomes["skipped"] = sum(outcomes[reason] for reason in SKIPPED)
        return SweepResult(
            scanned=scanned,
            linked_unchecked=self.counters.unchecked,
            remaining=scanned - self.counters.closed,
            published=self._messages.published,
            publish_failed=self._messages.failed,
            duration_ms=self._duration_ms,
            dry_run=self.dry_run,
            tenant_id=self.tenant_id,
            status=self._status(outcomes["failed"]),
            **{name: outcomes[name] for name in (*OUTCOMES, *SKIPPED)},
        )

    def _status(self, failed: int) -> SweepStatus:
        if isinstance(self.error, Exception):
            return "failed"
        return "ok" if (self.counters.complete or self._is_at_limit()) and not failed else "partial"

    def _timeout_ms(self) -> int:
        """Return the timeout of a statement: the time until the deadline, but at least a second."""
        return max(1_000, int((self._ends_at - time.monotonic()) * 1000))

    def _read(self, connected: OpenConnection, action: Callable[[Transaction], T]) -> T:
        def read() -> T:
            with connected.reading(self._timeout_ms()) as tx:
                return action(tx)

        return self._retry(read)

    def _write(self, connected: OpenConnection, action: Callable[[Transaction], T]) -> T:
        def write() -> T:
            with connected.writing() as tx:
                return action(tx)

        return with_retries(write)

    def _retry(self, action: Callable[[], T]) -> T:
        """Call *action* and return its result, with retries; a recent sweep leaves them to the next one."""
        return action() if self.is_recent else with_retries(action)


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

    With a limit it is neither: the history counts it as a targeted sweep, so that it never passes for a full one.
    """
    if limit is not None and limit < 1:
        raise InvalidArgumentError("limit must be at least 1")
    runtime.load_imports(only_warn=dry_run)
    return Sweep(
        runtime.database(),
        runtime.create_publisher(),
        kind="targeted" if limit is not None else "full" if bounds == (None, None) else "range",
        tenant_id=tenant_id,
        limit=limit,
        dry_run=dry_run,
        bounds=bounds,
        range_of=range_of,
        origin=origin,
    )


def reconcile(tenant_id: str | None = None, limit: int | None = None) -> SweepResult:
    """Link every eligible open event whose delivery exists, and broadcast each link; return the counts.

    Any number of sweeps may run at the same time: this takes no lock.

    Args:
        tenant_id: Sweep this tenant's events only; None is all tenants.
        limit: Stop after so many links; the rest stays open. The history counts such a sweep as a targeted one.

    Returns:
        The counts. If the sweep failed half-way, its `status` is `failed`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a privilege or the schema is wrong.
        ValueError: *limit* is below 1.
    """
    return prepare(tenant_id, limit).run()


def _stored_group(orphan: OrphanRow) -> Group:
    return Group(orphan.state, orphan.tenant_id, orphan.keys.provider)


def _open_group(match: OrphanMatch) -> Group:
    """Return the group of an orphan that stays open; a rule that failed leaves the stored group."""
    if match.keys.rank is None and match.orphan.keys.rank is not None:
        return _stored_group(match.orphan)
    return Group(match.result.state, match.orphan.tenant_id, match.keys.provider)


def _by_delivery(matches: Sequence[OrphanMatch]) -> list[tuple[str, str]]:
    """Return matched pairs of orphan and delivery in their order, but a delivery's together, behind its first.

    One batch then projects them at once.
    """
    pairs_by_delivery: dict[str, list[tuple[str, str]]] = {}
    for match in matches:
        delivery_id = match.result.delivery_id
        if delivery_id:
            pairs_by_delivery.setdefault(delivery_id, []).append((match.orphan.event_id, delivery_id))
    return list(chain.from_iterable(pairs_by_delivery.values()))
