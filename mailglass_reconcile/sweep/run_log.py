"""The log of a sweep: a row in the run history, a span and metrics, lines in the log.

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
from mailglass_reconcile.errors import translate
from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.store.tables import runs
from mailglass_reconcile.store.tables.runs import Run
from mailglass_reconcile.sweep.result import format_line

logger = logging.getLogger(__name__)

TIMEOUT_MS = 2_000

_idle_runs: dict[tuple[str, str | None], Run] = {}


def add_run(connected: OpenConnection, run: Run, *, range_of: int | None = None) -> int | None:
    """Add a run to the history, or to *range_of* the sweep that was cut, and return its id.

    Recent ones that did nothing wait for one that did, or some seconds.
    """
    if run.kind == "recent" and run.status == "ok" and not _is_due(run, connected.limits.held_seconds):
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


def _is_due(run: Run, held_seconds: float) -> bool:
    """Add to *run* the idle ones that were held before it, and hold them all unless it is time."""
    key = (run.origin, run.tenant_id)
    before = _idle_runs.pop(key, None)
    if before is not None:
        run.counts = {name: run.counts[name] + before.counts[name] for name in runs.COUNTS}
        run.runs += before.runs
        run.began = before.began
    if run.counts["linked"] or run.counts["failed"] or time.monotonic() - run.began >= held_seconds:
        return True
    _idle_runs[key] = run
    return False


@contextmanager
def reporting(kind: runs.RunKind, as_run: Callable[[BaseException | None], Run]) -> Iterator[None]:
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
