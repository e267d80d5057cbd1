"""What a sweep leaves behind: its counts, a row in the run history, its span and metrics, lines in the log.

None of it can make a sweep fail: the row has a transaction of its own. It also counts what stays open, by state, tenant
and provider: what the survey counted, corrected by what was judged since.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import (
    QUERY_CANCELED,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    SchemaOutdatedError,
    sqlstate,
    translated,
)
from mailglass_reconcile.rules.humanize import counted
from mailglass_reconcile.rules.matching import MATCHED, UNMATCHABLE, UNMATCHED
from mailglass_reconcile.store import privileges, runs, windows
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.store.runs import Run
from mailglass_reconcile.sweep.judge import Judged
from mailglass_reconcile.sweep.result import SweepResult, line, mismatches
from mailglass_reconcile.sweep.window import Found, Scan, Window

logger = logging.getLogger(__name__)

HELD_SECONDS = 10.0
"""Recent sweeps that did nothing are noted together, once in this time: each would cost a write."""
TIMEOUT_MS = 2_000

_held: dict[tuple[str, str | None], tuple[float, Run]] = {}

Owner = tuple[str | None, str | None]
OTHERS: Owner = (None, None)
"""The tenants and providers that the survey has added up, because there are very many."""


def run_of(result: SweepResult, kind: runs.Kind, origin: runs.Origin, error: BaseException | None = None) -> Run:
    """Return a sweep as the history has it; *error* is what ended it before its end, if anything did."""
    run = Run(kind, origin, result.shown_tenant, result.status, remaining=result.remaining)
    if error is not None:
        run.status = "failed" if isinstance(error, Exception) else "partial"
        run.error = type(error).__name__
    run.age_ms = result.duration_ms
    run.counts = {name: getattr(result, name, 0) for name in runs.COUNTS}
    return run


def note(connected: Connected, run: Run, *, range_of: int | None = None) -> int | None:
    """Add a run to the history, or to *range_of* the sweep that was cut, and return its id.

    Recent ones that did nothing wait for one that did, or some seconds.
    """
    if run.kind == "recent" and run.status == "ok" and not _is_due(run):
        return None
    try:
        # A replica that does not answer may hold up a link, which must be safe, but no row of the history.
        with connected.writing(TIMEOUT_MS, unwaited=True) as tx:
            if range_of is None:
                return runs.add(tx, run)
            runs.add_range(tx, range_of, run)
    except SQLAlchemyError as error:
        reason = translated(error) if isinstance(error, DBAPIError) else type(error).__name__
        logger.warning("this sweep is missing from the history of runs: %s", reason)
    return range_of


def _is_due(run: Run) -> bool:
    """Add to *run* the idle ones that were held before it, and hold them all unless it is time."""
    key = (run.origin, run.tenant_id)
    began, before = _held.pop(key, (time.monotonic() - run.age_ms / 1000, None))
    if before is not None:
        run.counts = {name: run.counts[name] + before.counts[name] for name in runs.COUNTS}
        run.runs += before.runs
        run.age_ms = round((time.monotonic() - began) * 1000)
    if run.counts["linked"] or run.counts["failed"] or run.age_ms >= HELD_SECONDS * 1000:
        return True
    _held[key] = (began, run)
    return False


@contextmanager
def reported(kind: runs.Kind, as_run: Callable[[BaseException | None], Run]) -> Iterator[None]:
    """Report the sweep that the block makes to OpenTelemetry and the log; *as_run* gets the error that ended it.

    Of recent sweeps there may be ten a second: only one that linked or failed is reported, when that is known.
    """
    began, error = time.time_ns(), None
    with nullcontext() if kind == "recent" else telemetry.span("sweep") as span:
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            run = as_run(error)
            if span is not None:
                _report(run, span)
            elif run.status != "ok" or run.counts["linked"] or run.counts["failed"]:
                with telemetry.span("sweep", start_time=began) as late:
                    _report(run, late)


def _report(run: Run, span: telemetry.Span) -> None:
    attributes: dict[str, telemetry.Value] = {
        "tenant_id": run.tenant_id,
        "scanned_count": run.counts["scanned"],
        "linked_count": run.counts["linked"],
        "remaining_orphan_count": run.remaining,
        "status": run.status,
        "kind": run.kind,
    }
    telemetry.describe(span, attributes, run.error if run.status == "failed" else None)
    telemetry.count_orphans(run.counts)
    telemetry.count_sweep(run.status, run.counts["duration_ms"])
    # A sweep that did something, or could not do all; why it failed has a line of its own.
    notable = run.counts["linked"] or run.counts["failed"] or run.status == "partial"
    if notable and logger.isEnabledFor(logging.INFO):
        logger.info("%s", line(run.tenant_id, run.status, run.counts, run.remaining))


@dataclass(slots=True)
class Account:
    """What a sweep will leave behind, gathered while it runs: counts, what stays open, the lag, and what ended it.

    Attributes:
        closed: How many orphans are open no longer.
        error: What ended the sweep before its end.
    """

    result: SweepResult
    scan: Scan
    kind: runs.Kind
    origin: runs.Origin
    range_of: int | None
    closed: int = 0
    error: BaseException | None = None
    _open_groups: OpenGroups | None = None
    _linkable_since: str | None = None
    _failures: Counter[str] = field(default_factory=Counter)

    @property
    def open_groups(self) -> OpenGroups | None:
        """What stays open, by state, tenant and provider; None if it is not counted."""
        window = self.scan.window
        if self._open_groups is None and window and window.survey and (self.kind == "full" or self.range_of):
            self._open_groups = OpenGroups(window)
        return self._open_groups

    def count(self, found: Found) -> None:
        """Count a slice by its verdicts."""
        self.result.failed += len(found.unreadable)
        self.result.skipped_held += found.closed
        self.closed += found.closed
        states = Counter(map(attrgetter("verdict.state"), found.judged))
        del states[MATCHED]
        self.result.count(states)
        self._failures.update(filter(None, map(attrgetter("keys.failure"), found.judged)))

    def judged(self, found: Sequence[Judged], closed: Collection[str]) -> None:
        """Correct the count of what stays open by verdicts; those in *closed* are open no longer."""
        if self.open_groups is not None:
            self.open_groups.judged(found, closed)

    def note_lag(self, since: str | None) -> None:
        """Note since when an orphan that stays open could have been linked."""
        self._linkable_since = min(filter(None, (since, self._linkable_since)), default=None)

    def break_off(self, connected: Connected, error: DBAPIError | DatabaseRefusedError) -> None:
        """Note what ended the sweep: the deadline in the middle of a statement, a missing right, or another fault.

        Raises:
            MailglassReconcileError: It ended before anything was swept.
        """
        if isinstance(error, DBAPIError):
            if sqlstate(error) == QUERY_CANCELED and self.scan.window and time.monotonic() >= self.scan.deadline - 1.0:
                return
            try:
                privileges.require_rights(connected, error)
            except DatabaseRefusedError as missing:
                error = missing
        self.error = cause = translated(error) if isinstance(error, DBAPIError) else error
        if self.scan.window is None:
            raise cause from None
        self.result.status = "failed"
        logger.error("the sweep failed: %s", cause)

    def settle(self) -> None:
        """Give every eligible orphan a state, and log what an operator should know."""
        window = self.scan.window
        if window is None:
            return
        self.result.unmatchable += window.unmatchable
        self.result.settle(window.eligible, complete=self.scan.complete)
        self.result.remaining = max(0, window.eligible - self.closed)
        if self.scan.ages is None:
            for failure, orphans in self._failures.items():
                logger.error("%s (%s)", failure, counted(orphans, "orphan"))
            for mismatch in mismatches(self.result):
                logger.warning("%s", mismatch)

    def leave(self, connected: Connected) -> None:
        """Leave a row in the history of runs; if nothing was swept because the database or the table is down, none."""
        nowhere = isinstance(self.error, DatabaseUnavailableError | SchemaOutdatedError) and self.scan.window is None
        if self.result.dry_run or nowhere:
            return
        if not self.scan.complete:
            self._note_unseen(connected)
        run = self.as_run()
        run.open_groups = None if self.open_groups is None else self.open_groups.as_groups()
        run.position = None if self.scan.complete else self.scan.next_position
        note(connected, run, range_of=self.range_of)

    def _note_unseen(self, connected: Connected) -> None:
        """Let what is new and was not looked at count towards the lag."""
        unseen = self.scan.unseen
        try:
            if unseen is not None:
                with connected.reading(TIMEOUT_MS) as tx:
                    self.note_lag(windows.first_eligible(tx, unseen))
        except (DBAPIError, MailglassReconcileError) as fault:
            logger.debug("cannot read since when orphans wait: %s", type(fault).__name__)

    def as_run(self, error: BaseException | None = None) -> Run:
        """Return the sweep as the history has it, ended by *error* or by what broke it off before."""
        run = run_of(self.result, self.kind, self.origin, error or self.error)
        run.linkable_since = self._linkable_since
        if self.scan.window is None:
            run.remaining = None
        return run


class OpenGroups:
    """Counts what stays open; an orphan that nothing else is known about is unmatched."""

    def __init__(self, window: Window) -> None:
        """Begin with what the survey found; keys of outdated rules say nothing yet."""
        self._counts: Counter[tuple[str, Owner]] = Counter()
        self._named: set[Owner] = set()
        self._tenants: set[str | None] = set()
        for group in window.groups:
            unmatchable = 0 if group.rule in window.outdated.marks else group.unmatchable
            owner = (group.tenant_id, group.provider)
            self._counts[UNMATCHED, owner] += group.orphans - unmatchable
            self._counts[UNMATCHABLE, owner] += unmatchable
            if not group.small:
                self._named.add(owner)
                self._tenants.add(group.tenant_id)

    def judged(self, found: Iterable[Judged], closed: Collection[str] = ()) -> None:
        """Correct the counts by the verdict on each orphan; those in *closed* are open no longer."""
        for one in found:
            owner = (one.orphan.tenant_id, one.orphan.keys.provider if one.orphan.keys.rule else None)
            self._counts[UNMATCHED, owner if owner in self._named else OTHERS] -= 1
            if one.orphan.event_id not in closed:
                named = one.orphan.tenant_id in self._tenants
                self._counts[one.verdict.state, (one.orphan.tenant_id, one.keys.provider) if named else OTHERS] += 1

    def as_groups(self) -> list[dict[str, Any]]:
        """Return `state`, `tenant_id`, `provider` and `orphans` of each group, the largest first."""
        return [
            {"state": state, "tenant_id": tenant_id, "provider": provider, "orphans": orphans}
            for (state, (tenant_id, provider)), orphans in self._counts.most_common()
            if orphans > 0
        ]
