"""A sweep step by step, and the statements that it waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult


def run(sweep: Sweep, after_each: Callable[[SweepResult], object]) -> SweepResult:
    """Sweep, call *after_each* with the counts after each batch, and return the result."""
    for _ in sweep.steps():
        after_each(sweep.result)
    return sweep.result


@contextmanager
def refusals(engine: sa.Engine) -> Iterator[list[str]]:
    """Collect the SQLSTATE of each statement that fails in the block."""
    sqlstates: list[str] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        sqlstates.append(getattr(context.original_exception, "sqlstate", None) or "")

    sa.event.listen(engine, "handle_error", note)
    yield sqlstates
    sa.event.remove(engine, "handle_error", note)
