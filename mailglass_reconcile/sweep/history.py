"""What a sweep leaves in the history of runs, in a transaction of its own; never a reason why a sweep fails."""

from __future__ import annotations

import logging
import time

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile.errors import translated
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import runs
from mailglass_reconcile.store.database import transaction
from mailglass_reconcile.store.runs import Run
from mailglass_reconcile.sweep.result import SweepResult, shown

logger = logging.getLogger(__name__)

HELD_SECONDS = 10.0
"""Recent sweeps that did nothing are noted together, once in this time: each would cost a write."""
TIMEOUT_MS = 2_000

# A stand-by that does not answer may hold up a link, which must be safe, but no row of the history.
_UNWAITED = "SELECT set_config('synchronous_commit', 'off', true)"

_held: dict[tuple[str, str | None], tuple[float, Run]] = {}


def run_of(result: SweepResult, kind: runs.Kind, origin: runs.Origin, error: BaseException | None = None) -> Run:
    """Return a sweep as the history has it; *error* is what ended it before its end, if anything did."""
    counts = {name: getattr(result, name, 0) for name in runs.COUNTS}
    run = Run(kind, origin, shown(result.tenant_id), result.status, counts, result.remaining, age_ms=result.duration_ms)
    if error is not None:
        run.status = "failed" if isinstance(error, Exception) else "partial"
        run.error = type(error).__name__
    return run


def note(connection: sa.Connection, settings: Settings, run: Run) -> None:
    """Add a run to the history. Recent ones that did nothing wait for one that did something, or some seconds."""
    if run.kind == "recent" and run.status == "ok" and not _is_due(run):
        return
    try:
        with transaction(
            connection, settings, lock_timeout_ms=TIMEOUT_MS, statement_timeout_ms=TIMEOUT_MS, probes_only=True
        ) as tx:
            tx.execute(_UNWAITED)
            runs.add(tx, run)
    except SQLAlchemyError as error:
        reason = translated(error) if isinstance(error, DBAPIError) else type(error).__name__
        logger.warning("this sweep is missing from the history of runs: %s", reason)


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
