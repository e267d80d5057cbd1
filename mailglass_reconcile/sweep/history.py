"""What a sweep leaves behind: a row in the run history, its span and metrics, a line in the log.

None of it can make a sweep fail: the row has a transaction of its own. It also counts what stays open, by state, tenant
and provider: what the survey counted, corrected by what was judged since.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import translated
from mailglass_reconcile.rules.humanize import shown_tenant
from mailglass_reconcile.rules.matching import UNMATCHABLE, UNMATCHED
from mailglass_reconcile.rules.states import OUTCOMES
from mailglass_reconcile.store import runs
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.store.runs import Run
from mailglass_reconcile.sweep.judge import Judged
from mailglass_reconcile.sweep.result import SweepResult, line
from mailglass_reconcile.sweep.window import Window

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
    counts = {name: getattr(result, name, 0) for name in runs.COUNTS}
    run = Run(
        kind, origin, shown_tenant(result.tenant_id), result.status, counts, result.remaining, age_ms=result.duration_ms
    )
    if error is not None:
        run.status = "failed" if isinstance(error, Exception) else "partial"
        run.error = type(error).__name__
    return run


def note(connected: Connected, run: Run, *, range_of: int | None = None) -> int | None:
    """Add a run to the history, and return its id. Recent ones that did nothing wait for one that did, or some seconds.

    Args:
        connected: A connection without a transaction.
        run: The run.
        range_of: The run of the sweep that was cut, if this one is a range of it.
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
    """Report the sweep that the block makes, however it ends, to OpenTelemetry and the log.

    Of recent sweeps there may be ten a second: only one that linked or failed is reported, when that is known.

    Args:
        kind: What kind of sweep it is.
        as_run: Returns the sweep as the history has it, given the error that ended it, if one did.
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
    telemetry.count_orphans({state: run.counts[state] for state in OUTCOMES})
    telemetry.count_sweep(run.status, run.counts["duration_ms"])
    # A sweep that did something, or could not do all; why it failed has a line of its own.
    if run.counts["linked"] or run.counts["failed"] or run.status == "partial":
        logger.info("%s", line(run.tenant_id, run.status, run.counts, run.remaining))


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
