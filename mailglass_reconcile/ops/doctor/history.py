"""What the runs have left in the database: when a sweep last succeeded, who asked for it, and what handlers missed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mailglass_reconcile.ops import health
from mailglass_reconcile.ops.doctor.finding import OK, Finding, error, ok, warning
from mailglass_reconcile.ops.handlers import problems
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import age, counted, shown
from mailglass_reconcile.schedule import LATE_SECONDS, PRUNE_LATE_SECONDS
from mailglass_reconcile.store import handled, outbox
from mailglass_reconcile.store.database import Transaction

_BEAT_AGE = """
SELECT min(extract(epoch FROM now()::timestamp - b.finished_at))::float8
  FROM unnest(ARRAY['full', 'recent', 'range']) AS k (kind)
 CROSS JOIN LATERAL (SELECT finished_at FROM {schema}.mailglass_reconcile_runs
                      WHERE kind = k.kind AND origin = 'beat' ORDER BY id DESC LIMIT 1) AS b
"""

START_BEAT = "start beat (`celery -A mailglass_reconcile beat`, or that of your own app), or run sweeps from cron"
NEVER = "beat has never started a sweep"
ALONE = "sweeps run without Celery"


def without_celery(found: Iterable[Finding]) -> bool:
    """Whether sweeps run in time although nobody asks Celery for them: from cron, or from an application."""
    return any(one.check == "beat" and one.status == OK and ALONE in one.message for one in found)


def sweeps(tx: Transaction) -> Iterator[Finding]:
    """Check that full sweeps succeed, and that beat asks for them if it ever did."""
    row = health.last_sweeps(tx)
    late = row.success_age is None or row.success_age > LATE_SECONDS
    if row.status == "failed":
        yield error(
            "sweeps",
            f"the last full sweep failed {age(row.last_age)} ago ({shown(row.error or 'no error was noted')})",
            "run `mailglass-reconcile sweep`: it names the reason",
        )
    elif row.success_age is None:
        yield warning("sweeps", "no full sweep has run yet", f"run `mailglass-reconcile sweep`, then {START_BEAT}")
    elif late:
        yield error(
            "sweeps",
            f"the last full sweep that succeeded ended {age(row.success_age)} ago",
            "look at the findings worker, queues, lock and beat; or run `mailglass-reconcile sweep`",
        )
    else:
        yield ok(
            "sweeps", f"the last full sweep succeeded {age(row.success_age)} ago, asked for by {row.success_origin}"
        )
    yield _beat(tx.execute(_BEAT_AGE).scalar_one(), None if late else row.success_origin)
    yield _prune(row.unpruned_seconds or 0.0, pruned=row.pruned)


def _beat(beat_age: float | None, origin: str | None) -> Finding:
    """Say when beat asked last, beside the *origin* of a full sweep that succeeded in time, if there is one."""
    if beat_age is None:
        if origin is None:
            return warning("beat", NEVER, START_BEAT)
        alone = "the last one was a call of the task" if origin == "call" else f"{ALONE}, by {origin}"
        return ok("beat", f"{NEVER}; {alone}")
    asked = f"beat started a sweep {age(beat_age)} ago"
    if beat_age <= LATE_SECONDS:
        return ok("beat", asked)
    if origin is None:
        return error("beat", f"{asked}, and not since", START_BEAT)
    return warning("beat", f"{asked}, and not since; {origin} does now", START_BEAT)


def _prune(seconds: float, *, pruned: bool) -> Finding:
    """Say when something was pruned last; *seconds* ago, or in so long a history never."""
    if seconds > PRUNE_LATE_SECONDS:
        last = f"the last prune ended {age(seconds)} ago" if pruned else f"no prune in a history of {age(seconds)}"
        step = "run `mailglass-reconcile prune`; then let beat or cron do so daily, and look at its worker's queue"
        return warning("prune", f"{last}: tables grow, and expired orphans stay open", step)
    return ok("prune", f"the last prune ended {age(seconds)} ago" if pruned else "no prune yet; one a day is enough")


def handlers(tx: Transaction) -> Iterator[Finding]:
    """Check that handlers run on what waits for them, and that each type with handlers has a dispatcher."""
    if not handled.may_read(tx, "mailglass_hook_outbox"):
        yield ok("handlers", "this role may not read mailglass_hook_outbox, so events for handlers were not counted")
        return
    facts = outbox.facts(tx)
    found = problems(facts, handled.unseen(tx))
    for grave, sentence, remedy in found:
        yield (error if grave else warning)("handlers", sentence, remedy)
    known = ", ".join(map(shown, sorted(registry.types())))
    wait = counted(facts.waiting, "event waits", "events wait")
    if facts.waiting and not known:
        yield warning(
            "handlers",
            f"{wait} for a handler, and none is registered in this process",
            "name the module of your handlers in MAILGLASS_IMPORTS, for the worker too",
        )
    elif not found:
        yield ok("handlers", f"handlers of {known or 'no type'} are registered; {wait}, none is dead")
