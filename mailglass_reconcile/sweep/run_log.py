"""The record of a sweep: a row in the run history, a span and metrics, lines in the log.

None of it can make a sweep fail: the row has a transaction of its own. The row also counts the open orphans by state,
tenant and provider, because the states are stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import (
    QUERY_CANCELED,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    SchemaOutdatedError,
    sqlstate,
    translate,
)
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.store import privileges, runs, window
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.store.runs import Run
from mailglass_reconcile.sweep.request import SweepRun
from mailglass_reconcile.sweep.result import format_line, format_mismatches

logger = logging.getLogger(__name__)

HELD_SECONDS = 10.0
"""Recent sweeps that did nothing share one row in this time: each would cost a write."""
TIMEOUT_MS = 2_000

_idle_runs: dict[tuple[str, str | None], Run] = {}


def to_run(sweep: SweepRun, error: BaseException | None = None) -> Run:
    """Make a sweep's row for the history of runs; *error*, or an earlier one, ended the sweep early."""
    result, error = sweep.result, error or sweep.error
    run = Run(sweep.kind, sweep.origin, result.shown_tenant, result.status, remaining=result.remaining)
    if error is not None:
        run.status = "failed" if isinstance(error, Exception) else "partial"
        run.error = type(error).__name__
    run.began = sweep.started
    run.counts = {name: getattr(result, name, 0) for name in runs.COUNTS}
    run.linkable_since = sweep.linkable_since
    run.covered = sweep.counters.complete
    if not sweep.has_started:
        run.remaining = None
    return run


def add_run(connected: Connected, run: Run, *, range_of: int | None = None) -> int | None:
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
        reason = translate(error) if isinstance(error, DBAPIError) else type(error).__name__
        logger.warning("this sweep is missing from the history of runs: %s", reason)
    return range_of


def _is_due(run: Run) -> bool:
    """Add to *run* the idle ones that were held before it, and hold them all unless it is time."""
    key = (run.origin, run.tenant_id)
    before = _idle_runs.pop(key, None)
    if before is not None:
        run.counts = {name: run.counts[name] + before.counts[name] for name in runs.COUNTS}
        run.runs += before.runs
        run.began = before.began
    if run.counts["linked"] or run.counts["failed"] or time.monotonic() - run.began >= HELD_SECONDS:
        return True
    _idle_runs[key] = run
    return False


@contextmanager
def reporting(kind: runs.Kind, as_run: Callable[[BaseException | None], Run]) -> Iterator[None]:
    """Report the block's sweep to OpenTelemetry and the log; *as_run* makes its row from the error that ended it.

    There may be ten recent sweeps a second: one is reported only if it linked or failed, at its end.
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
                with telemetry.span("sweep", start_time=began) as span_:
                    _report(run, span_)


def _report(run: Run, span: telemetry.Span) -> None:
    attributes: dict[str, telemetry.Value] = {
        "tenant_id": run.tenant_id,
        "scanned_count": run.counts["scanned"],
        "linked_count": run.counts["linked"],
        "remaining_orphan_count": run.remaining,
        "status": run.status,
        "kind": run.kind,
    }
    telemetry.set_attributes(span, attributes, run.error if run.status == "failed" else None)
    telemetry.count_orphans(run.counts)
    telemetry.count_sweep(run.status, run.counts["duration_ms"])
    # A sweep that did something, or could not do all; why it failed has a line of its own.
    notable = run.counts["linked"] or run.counts["failed"] or run.status == "partial"
    if notable and logger.isEnabledFor(logging.INFO):
        logger.info("%s", format_line(run.tenant_id, run.status, run.counts, run.remaining))


def fail(sweep: SweepRun, connected: Connected, error: DBAPIError | DatabaseRefusedError) -> None:
    """Set the error that ended a sweep: a missing privilege or another fault; the deadline is none."""
    if isinstance(error, DBAPIError):
        if sqlstate(error) == QUERY_CANCELED and sweep.has_started and sweep.is_out_of_time:
            return
        try:
            privileges.require_privileges(connected, error)
        except DatabaseRefusedError as privilege_error:
            error = privilege_error
    sweep.error = cause = translate(error) if isinstance(error, DBAPIError) else error
    if not sweep.has_started:
        raise cause from None
    sweep.counters.broke_off = True
    logger.error("the sweep failed: %s", cause)


def finish(sweep: SweepRun, connected: Connected) -> None:
    """Log failed key rules and mismatches, and add a row to the history of runs.

    If nothing was swept because the database or the table is down, there is no row.
    """
    if sweep.has_started and not sweep.is_recent:
        for failure, orphans in sweep.failures.items():
            logger.error("%s (%s)", failure, pluralize(orphans, "orphan"))
        for mismatch in format_mismatches(sweep.result):
            logger.warning("%s", mismatch)
    nowhere = isinstance(sweep.error, DatabaseUnavailableError | SchemaOutdatedError) and not sweep.has_started
    if sweep.dry_run or nowhere:
        return
    if sweep.counters.misses_unseen:
        sweep.update_lag(sweep.unseen_since)
    run = to_run(sweep)
    if sweep.kind in ("full", "range"):
        run.open_groups = window.as_groups(sweep.counters.open_groups())
    add_run(connected, run, range_of=sweep.range_of)
