"""What a sweep tells an operator: its span, its metrics, and a line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from mailglass_reconcile import telemetry
from mailglass_reconcile.rules.states import OUTCOMES
from mailglass_reconcile.rules.wording import counted, took
from mailglass_reconcile.store.runs import Kind, Run
from mailglass_reconcile.sweep.result import SweepResult, remaining

logger = logging.getLogger(__name__)


@contextmanager
def reported(kind: Kind, as_run: Callable[[BaseException | None], Run]) -> Iterator[None]:
    """Report the sweep that the block makes, however it ends.

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
                _tell(run, span)
            elif not _is_idle(run):
                with telemetry.span("sweep", start_time=began) as late:
                    _tell(run, late)


def _tell(run: Run, span: telemetry.Span) -> None:
    telemetry.describe(span, _attributes(run), run.error if run.status == "failed" else None)
    telemetry.count_orphans({state: run.counts[state] for state in OUTCOMES})
    telemetry.count_sweep(run.status, run.counts["duration_ms"])
    log(run)


def _is_idle(run: Run) -> bool:
    return run.status == "ok" and not (run.counts["linked"] or run.counts["failed"])


def _attributes(run: Run) -> dict[str, telemetry.Value]:
    return {
        "tenant_id": run.tenant_id,
        "scanned_count": run.counts["scanned"],
        "linked_count": run.counts["linked"],
        "remaining_orphan_count": run.remaining,
        "status": run.status,
        "kind": run.kind,
    }


def log(run: Run) -> None:
    """Log a sweep that did something, or could not do all, as one line; why it broke off has a line of its own."""
    if not (run.counts["linked"] or run.counts["failed"] or run.status == "partial"):
        return
    whose = "all tenants" if run.tenant_id is None else f"tenant '{run.tenant_id}'"
    rest = [f"{number:,} {state}" for state in OUTCOMES if state != "linked" and (number := run.counts[state])]
    rest += [f"{counted(run.counts['publish_failed'], 'broadcast')} not sent"] if run.counts["publish_failed"] else []
    rest += [] if run.status == "ok" else [f"{run.status}, {remaining(run.remaining)}"]
    logger.info(
        "swept %s: linked %s of %s in %s%s",
        whose,
        f"{run.counts['linked']:,}",
        counted(run.counts["scanned"], "open orphan"),
        took(run.counts["duration_ms"]),
        "".join(f"; {words}" for words in rest),
    )


def warn_of_mismatches(result: SweepResult) -> None:
    """Log what matches only what belongs to somebody else, which stays open: a line for each kind."""
    if result.tenant_mismatch:
        logger.warning(
            "%s only another tenant's deliveries and were not linked; if their tenant is `default`,"
            " perhaps Mailglass lacks resolve_webhook_tenant",
            counted(result.tenant_mismatch, "orphan matches", "orphans match"),
        )
    if result.recipient_mismatch:
        logger.warning(
            "%s only another recipient's deliveries and were not linked",
            counted(result.recipient_mismatch, "orphan matches", "orphans match"),
        )
