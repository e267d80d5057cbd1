"""Driving a sweep step by step, and counting what it waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult


def run(sweep: Sweep, after_each: Callable[[SweepResult], object]) -> SweepResult:
    """Sweep, call *after_each* with the counts so far after each batch, and return the counts."""
    for _ in sweep.steps():
        after_each(sweep.result)
    return sweep.result


@contextmanager
def refusals(engine: sa.Engine) -> Iterator[list[str]]:
    """Yield a list that gets the SQLSTATE of each statement that fails in the block."""
    found: list[str] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        found.append(getattr(context.original_exception, "sqlstate", None) or "")

    sa.event.listen(engine, "handle_error", note)
    yield found
    sa.event.remove(engine, "handle_error", note)
