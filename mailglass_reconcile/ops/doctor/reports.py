"""Whether providers report on what was sent."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops import silence
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.rules.humanize import age, shown
from mailglass_reconcile.store import reports
from mailglass_reconcile.store.database import Transaction


def missing(tx: Transaction) -> Iterator[Finding]:
    """Say of each provider how many deliveries lack a report, and whether its webhooks have stopped or never came."""
    hours = tx.settings.silence_hours
    if hours is None:
        yield ok("reports", "nobody looks for missing reports (MAILGLASS_SILENCE_HOURS is infinity)")
        return
    found = [one for one in reports.missing(tx) if one.deliveries]
    for one in found:
        name = "without a provider" if one.provider is None else f"of {shown(one.provider)}"
        lacking = f"{silence.lacking(one, hours)} ({name})"
        if one.stopped:
            yield error("reports", silence.stopped(one, hours), silence.REMEDY)
        elif one.silent_seconds is not None:
            yield warning("reports", f"no webhook has ever come for deliveries {name}: {lacking}", silence.REMEDY)
        else:
            yield ok("reports", lacking)
    if not found:
        yield ok("reports", f"no delivery looked at was dispatched more than {age(hours * 3_600)} ago")
