"""The sweep: the way of the data, from the open orphans to the broadcast."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.beside_mailglass import by_id_alone
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.store import open_orphans, stored_keys, windows
from mailglass_reconcile.store.database import Connected, Transaction, with_retries
from mailglass_reconcile.store.open_orphans import Place
from mailglass_reconcile.store.runs import Origin
from mailglass_reconcile.store.stored_keys import Known
from mailglass_reconcile.sweep import history, reading, window
from mailglass_reconcile.sweep.judge import Judged, unchecked
from mailglass_reconcile.sweep.link import Notes, Pairs, link_batch
from mailglass_reconcile.sweep.reading import Found
from mailglass_reconcile.sweep.request import Request
from mailglass_reconcile.sweep.result import SweepResult
from mailglass_reconcile.sweep.window import Part, Window

T = TypeVar("T")

SLICE_ORPHANS = 10_000
"""Orphans whose keys and verdicts are in memory at once: about 10 MB."""


class Sweep(Request):
    """One run over open orphans, which has not begun yet, and connects only when it runs."""

    def run(self, on: AbstractContextManager[Connected] | None = None) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        *on* gives a connection without a transaction; None opens one.
        """
        for _ in self.steps(on):
            pass
        return self.result

    def steps(self, on: AbstractContextManager[Connected] | None = None) -> Iterator[Pairs]:
        """Sweep as `run` does, and yield each batch's pairs of orphan and delivery, or in a dry run each slice's.

        After each slice it yields no pairs: then all of it is judged.
        """
        self.started = time.monotonic()
        # A sweep that cannot connect is reported, too.
        with (
            nullcontext() if self.dry_run else history.reported(self.kind, lambda error: history.run_of(self, error)),
            on or self.database.connect() as connected,
        ):
            try:
                yield from self._sweep(connected)
            except (DBAPIError, DatabaseRefusedError) as error:
                history.break_off(self, connected, error)
            except BaseException as error:
                self.error = error
                raise
            finally:
                if self.publisher is not None:
                    self.tally.messages = self.publisher.wait()
                self.tally.duration_ms = round((time.monotonic() - self.started) * 1000)
                history.leave(self, connected)

    def _sweep(self, connected: Connected) -> Iterator[Pairs]:
        """Take the census; then judge slice by slice, link what matches, and store what stays open with its state."""
        complete = True
        for part in self._opened(connected):
            self.deadline.begin_part(with_refused_to_come=self._has_refused and not part.refused)
            for ids in self._slices(connected, part):
                if self.deadline.is_over:
                    complete = False
                    break
                with _collector_resting():
                    found = reading.judged(connected, ids, self.deadline, self._retried)
                    yield from self._take_up(connected, found)
                yield ()
                complete = complete and not self.deadline.is_over
        self.tally.complete = complete

    def _opened(self, connected: Connected) -> list[Part]:
        """Take the census, and return what to judge, in order."""
        if self.event_ids is not None:
            self.tally.begin({None: len(self.event_ids)})
            self.to_judge = len(self.event_ids)
            return [Part(bytes.fromhex("".join(self.event_ids).replace("-", "")))]

        def read() -> tuple[Window, list[Part]]:
            with connected.reading(self.deadline.left_ms) as tx:
                opened = window.open_window(tx, self.tenant_id, self.bounds, self.ages)
                return opened, window.parts(tx, opened)

        self.window, parts = self._retried(read)
        self.tally.begin(self.window.census)
        self.to_judge = sum(part.orphans for part in parts)
        if self.ages is None:
            window.warn(self.window.survey)
        return parts

    @property
    def _has_refused(self) -> bool:
        return self.window is not None and self.window.refused > 0

    def _slices(self, connected: Connected, part: Part) -> Iterator[list[str]]:
        """Yield the ids of a part, a slice at a time; what did not fit into memory is read after the rest."""
        while True:
            yield from windows.unpacked(part.packed, SLICE_ORPHANS)
            if part.last is None or self.window is None:
                return
            part = self._retried(partial(self._next_part, connected, self.window, part.last))
            self.to_judge += part.orphans

    def _next_part(self, connected: Connected, opened: Window, before: Place) -> Part:
        with connected.reading(self.deadline.left_ms) as tx:
            return window.next_part(tx, opened, before)

    def _take_up(self, connected: Connected, found: Found) -> Iterator[Pairs]:
        """Give each orphan of a slice its outcome; yield the batches that were linked."""
        self.tally.take_up(one.orphan.state for one in found.judged)
        self.tally.was_closed(found.closed)
        self.tally.cannot_be_read(len(found.unreadable))
        self.tally.stays_open(one.verdict.state for one in found.judged if one.verdict.state != MATCHED)
        self.failures.update(one.keys.failure for one in found.judged if one.keys.failure)
        linked: set[str] = set()
        notes = unchecked(found.judged)
        for batch in self._batches(found.judged):
            linked |= self._link(connected, batch, notes)
            yield batch
        if not self.dry_run:
            self._refuse(connected, found.unreadable)
            self._keep(connected, [one for one in found.judged if one.orphan.event_id not in linked])

    def _batches(self, judged: Sequence[Judged]) -> Iterator[Pairs]:
        """Yield what to link, batch by batch, as far as the limit and the deadline go."""
        pairs = _by_delivery(judged)
        allowed = len(pairs) if self.limit is None else min(len(pairs), self.limit - self.tally.linked)
        self.tally.exceeds_limit(len(pairs) - allowed)
        if self.dry_run:
            yield pairs[:allowed]
            return
        size = self.database.settings.batch_size
        for start in range(0, allowed, size):
            if self.deadline.is_over:
                return
            yield pairs[start : min(start + size, allowed)]

    def _link(self, connected: Connected, pairs: Pairs, notes: Notes) -> set[str]:
        """Link a batch, publish what was committed, and return the linked orphans' ids."""
        if self.dry_run or self.publisher is None:
            by_id = [event_id for event_id, _ in pairs if event_id in notes]
            alone = self._read(connected, lambda tx: by_id_alone.of_other_writers(tx, by_id))
            self.tally.would_link(len(pairs), alone)
            return set()
        self.in_batch = True
        batch = link_batch(connected, pairs, lambda: self.deadline.is_over, notes)
        self.publisher.publish([projector.message(one) for one in batch.linked])
        self.tally.links(batch)
        self.handed_over = self.handed_over or any(one.handled for one in batch.linked)
        self.in_batch = False
        if batch.outage is not None:
            raise batch.outage
        self._refuse(connected, batch.failed)
        return {one.event_id for one in batch.linked}

    def _keep(self, connected: Connected, left: Sequence[Judged]) -> None:
        """Of what stays open, store keys and states that are new, and note since when it could have been linked."""
        new_keys = {one.orphan.event_id: one for one in left if one.has_new_keys}
        if new_keys:
            self._store_keys(connected, new_keys)
        # A rule that failed changes nothing over stored keys.
        states = {
            one.orphan.event_id: (one.verdict.state, one.keys.rule)
            for one in left
            if not one.has_new_keys and one.verdict.state != one.orphan.state and one.keys.rule == one.orphan.keys.rule
        }
        if states:
            self._write(connected, lambda tx: open_orphans.store_states(tx, states))
        if new_keys or states:
            self.tally.stored()
        pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in left if one.verdict.delivery_id]
        if pairs:
            self.note_lag(self._read(connected, lambda tx: open_orphans.linkable_since(tx, pairs)))

    def _store_keys(self, connected: Connected, new: Mapping[str, Judged]) -> None:
        """Store keys and states by orphan, so that no later sweep computes them again."""
        computed = {event_id: Known(one.keys, one.verdict.state) for event_id, one in new.items()}
        rules_before = {event_id: one.orphan.keys.rule for event_id, one in new.items()}
        settled = self._write(connected, lambda tx: stored_keys.store(tx, computed, rules_before))
        self.tally.turned_out_closed(new[event_id].verdict.state for event_id in settled)

    def _refuse(self, connected: Connected, event_ids: Sequence[str]) -> None:
        """Let later sweeps look last at orphans that the database refuses."""
        if event_ids:
            self._write(connected, lambda tx: open_orphans.refuse(tx, event_ids))

    def _read(self, connected: Connected, action: Callable[[Transaction], T]) -> T:
        def read() -> T:
            with connected.reading(self.deadline.left_ms) as tx:
                return action(tx)

        return with_retries(read)

    def _write(self, connected: Connected, action: Callable[[Transaction], T]) -> T:
        def write() -> T:
            with connected.writing() as tx:
                return action(tx)

        return with_retries(write)

    def _retried(self, action: Callable[[], T]) -> T:
        """Return what *action* returns; after a recent sweep comes the next one, which is soon enough."""
        return with_retries(action) if self.ages is None else action()


def prepare(
    tenant_id: str | None = None,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    bounds: tuple[str | None, str | None] = (None, None),
    range_of: int | None = None,
    origin: Origin = "python",
) -> Sweep:
    """Return a full sweep, or one of a range, not yet begun, on this process's settings and Redis."""
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

    Any number of sweeps may run at the same time: this takes no lock.

    Args:
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many; the rest stays open.

    Returns:
        The counts. If the sweep failed half-way, its `status` is `failed`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a privilege or the schema is wrong.
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
