"""The sweep: the way of the data, from the open orphans to the broadcast."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.store import ledger, open_orphans, stored_keys
from mailglass_reconcile.store.database import Connected, Database, Transaction, with_retries
from mailglass_reconcile.store.runs import Kind, Origin
from mailglass_reconcile.sweep import history
from mailglass_reconcile.sweep.history import Account
from mailglass_reconcile.sweep.judge import Judged, unchecked
from mailglass_reconcile.sweep.link import Notes, Pairs, link_batch
from mailglass_reconcile.sweep.result import SweepResult
from mailglass_reconcile.sweep.window import Scan

T = TypeVar("T")

SLICE_ORPHANS = 10_000
"""Orphans whose keys and verdicts are in memory at once: about 10 MB."""


@dataclass(slots=True, eq=False, kw_only=True)
class Sweep:
    """One run over open orphans, which has not begun yet, and connects only when it runs.

    Attributes:
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
        result: The counts so far, at any moment.
        account: What it leaves behind.
        in_batch: Whether a batch is between its claim and its count: only then it is unknown what was committed.
    """

    database: Database = field(kw_only=False)
    publisher: Publisher | None = field(kw_only=False)
    kind: Kind = "full"
    tenant_id: str | None = None
    limit: int | None = None
    dry_run: bool = False
    bounds: tuple[str | None, str | None] = (None, None)
    event_ids: Sequence[str] | None = None
    ages: Sequence[tuple[float, float]] | None = None
    seconds: float = math.inf
    range_of: int | None = None
    origin: Origin = "python"
    result: SweepResult = field(init=False)
    account: Account = field(init=False)
    in_batch: bool = field(init=False, default=False)
    _scan: Scan = field(init=False)

    def __post_init__(self) -> None:
        """Begin to count: the deadline and the duration are those of this moment."""
        deadline = time.monotonic() + min(self.seconds, self.database.settings.sweep_seconds)
        full = self.kind == "full"
        self._scan = Scan(deadline, not self.dry_run, self.tenant_id, self.bounds, self.ages, full, self.event_ids)
        self.result = SweepResult(tenant_id=self.tenant_id, dry_run=self.dry_run)
        self.account = Account(self.result, self._scan, self.kind, self.origin, self.range_of)

    def run(self, on: AbstractContextManager[Connected] | None = None) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        Args:
            on: Gives a connection without a transaction; None opens one.

        Raises:
            MailglassReconcileError: Nothing was swept: no connection, a missing right, an outdated schema.
        """
        for _ in self.steps(on):
            pass
        return self.result

    def steps(self, on: AbstractContextManager[Connected] | None = None) -> Iterator[Pairs]:
        """Sweep as `run` does, and yield each batch's pairs of orphan and delivery; in a dry run, each slice's."""
        began = time.monotonic()
        # A sweep that cannot connect is reported, too.
        with (
            nullcontext() if self.dry_run else history.reported(self.account.kind, self.account.as_run),
            on or self.database.connect() as connected,
        ):
            try:
                yield from self._sweep(connected)
            except (DBAPIError, DatabaseRefusedError) as error:
                self.account.break_off(connected, error)
            except BaseException as error:
                self.account.error = error
                raise
            finally:
                self.account.settle()
                self.result.duration_ms = round((time.monotonic() - began) * 1000)
                self.account.leave(connected)

    @property
    def eligible(self) -> int | None:
        """How many orphans are looked at; None before that is known."""
        return None if self._scan.window is None else self._scan.window.eligible

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self._scan.deadline = time.monotonic()

    def _sweep(self, connected: Connected) -> Iterator[Pairs]:
        """Judge slice by slice, link what matches batch by batch, and keep the keys of what stays open."""
        for ids in self._scan.ids(connected, SLICE_ORPHANS):
            with _collector_resting():
                found = self._scan.judge(connected, ids)
                self.account.count(found)
                linked: set[str] = set()
                notes = unchecked(found.judged)
                for batch in self._batches(found.judged):
                    linked |= self._link(connected, batch, notes)
                    yield batch
                if not self.dry_run:
                    self._refuse(connected, found.unreadable)
                    self._keep(connected, found.judged, linked)
                self.account.judged(found.judged, linked)
            if self._expired():
                return
        self._scan.complete = True

    def _batches(self, judged: Sequence[Judged]) -> Iterator[Pairs]:
        """Yield what to link, batch by batch, as far as the limit and the deadline go."""
        pairs = _by_delivery(judged)
        allowed = len(pairs) if self.limit is None else min(len(pairs), self.limit - self.result.linked)
        self.result.skipped_limit += len(pairs) - allowed
        if self.dry_run:
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
        if self.dry_run or self.publisher is None:
            return self._only_count(connected, pairs, notes)
        self.in_batch = True
        batch = link_batch(connected, pairs, self._expired, notes)
        self.result.add(batch, self.publisher.publish(list(map(projector.message, batch.linked))))
        self.account.closed += len(batch.linked) + batch.settled
        self.in_batch = False
        if batch.outage is not None:
            raise batch.outage
        self._refuse(connected, batch.failed)
        return set(map(attrgetter("event_id"), batch.linked))

    def _only_count(self, connected: Connected, pairs: Pairs, notes: Notes) -> set[str]:
        """Count what of a batch would be linked by the message id alone, and link nothing."""
        by_id = [event_id for event_id, _ in pairs if event_id in notes]
        if by_id:
            self.result.linked_unchecked += self._read(connected, lambda tx: ledger.of_other_writers(tx, by_id))
        return set()

    def _keep(self, connected: Connected, judged: Sequence[Judged], linked: set[str]) -> None:
        """Of what stays open, store the keys that are new, and note since when it could have been linked."""
        left = [one for one in judged if one.orphan.event_id not in linked]
        if left:
            self._store_keys(connected, {one.orphan.event_id: one for one in left if one.has_new_keys})
        pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in left if one.verdict.delivery_id]
        if pairs:
            self.account.note_lag(self._read(connected, lambda tx: open_orphans.linkable_since(tx, pairs)))

    def _store_keys(self, connected: Connected, new: Mapping[str, Judged]) -> None:
        """Store keys by orphan, so that no later sweep computes them again."""
        if not new:
            return
        computed = {event_id: one.keys for event_id, one in new.items()}
        outdated = {event_id: rule for event_id, one in new.items() if (rule := one.orphan.keys.rule)}
        settled = set(self._write(connected, lambda tx: stored_keys.store(tx, computed, outdated)))
        # They were judged, but another session has closed them.
        gone = Counter(state for event_id in settled if (state := new[event_id].verdict.state) != MATCHED)
        self.result.count({state: -number for state, number in gone.items()})
        self.result.skipped_held += gone.total()
        self.account.closed += len(settled)

    def _refuse(self, connected: Connected, event_ids: Sequence[str]) -> None:
        """Let later sweeps look last at orphans that the database refuses."""
        if event_ids:
            self._write(connected, lambda tx: open_orphans.refuse(tx, event_ids))

    def _read(self, connected: Connected, action: Callable[[Transaction], T]) -> T:
        def read() -> T:
            with connected.reading(self._scan.left_ms()) as tx:
                return action(tx)

        return with_retries(read)

    def _write(self, connected: Connected, action: Callable[[Transaction], T]) -> T:
        def write() -> T:
            with connected.writing() as tx:
                return action(tx)

        return with_retries(write)

    def _expired(self) -> bool:
        return time.monotonic() >= self._scan.deadline


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


def _by_delivery(judged: Sequence[Judged]) -> list[tuple[str, str]]:
    """Return matched pairs of orphan and delivery in their order, but a delivery's together, behind its first.

    One batch then projects them at once.
    """
    together: dict[str, list[tuple[str, str]]] = {}
    for one in judged:
        if one.verdict.delivery_id:
            together.setdefault(one.verdict.delivery_id, []).append((one.orphan.event_id, one.verdict.delivery_id))
    return list(chain.from_iterable(together.values()))


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Spare Python's garbage collector a slice's many objects: it would walk through them for a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
