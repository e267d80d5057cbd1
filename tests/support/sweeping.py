"""Driving a sweep step by step."""

from collections.abc import Callable

from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult


def run(sweep: Sweep, after_each: Callable[[SweepResult], object]) -> SweepResult:
    """Sweep, call *after_each* with the counts so far after each batch, and return the counts."""
    for _ in sweep.steps():
        after_each(sweep.result)
    return sweep.result
