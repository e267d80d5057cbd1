"""A sweep step by step, and the statements that it waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult


def run(sweep: Sweep, after_each: Callable[[SweepResult], object]) -> SweepResult:
    """Sweep, call *after_each* with the counts after each batch, and return the result."""
    for _ in sweep.batches():
        after_each(sweep.result)
    return sweep.result


@contextmanager
def held(engine: sa.Engine, *, free: int = 0) -> Iterator[None]:
    """Lock in another session what a sweep would link, but for the *free* newest events: it is left as matched."""
    pairs = [pair for batch in reconciler.prepare(dry_run=True).batches() for pair in batch]
    ids = [delivery_id for _, delivery_id in pairs[free:]]
    with engine.begin() as connection:
        connection.execute(
            sa.text("SELECT FROM mailglass_deliveries WHERE id = ANY (CAST(:ids AS uuid[])) FOR NO KEY UPDATE"),
            {"ids": ids},
        )
        yield


@contextmanager
def refusals(engine: sa.Engine) -> Iterator[list[str]]:
    """Collect the SQLSTATE of each statement that fails in the block."""
    sqlstates: list[str] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        sqlstates.append(getattr(context.original_exception, "sqlstate", None) or "")

    sa.event.listen(engine, "handle_error", note)
    yield sqlstates
    sa.event.remove(engine, "handle_error", note)
