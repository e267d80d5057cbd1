"""What the runs have left in the database: when a sweep last succeeded, who asked for it, and what handlers missed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mailglass_reconcile.hooks import registry
from mailglass_reconcile.ops.doctor.finding import OK, Finding, error, ok, shown, warning
from mailglass_reconcile.store import outbox
from mailglass_reconcile.store.database import Transaction

LATE_SECONDS = 900
"""Three intervals of the beat schedule."""

_RUNS = """
SELECT extract(epoch FROM now()::timestamp - good.finished_at)::bigint AS age, good.origin,
       extract(epoch FROM now()::timestamp - last.finished_at)::bigint AS last_age, last.status, last.error,
       (SELECT min(extract(epoch FROM now()::timestamp - b.finished_at))::bigint
          FROM unnest(ARRAY['full', 'recent', 'range']) AS k (kind)
         CROSS JOIN LATERAL (SELECT finished_at FROM {schema}.mailglass_reconcile_runs
                              WHERE kind = k.kind AND origin = 'beat' ORDER BY id DESC LIMIT 1) AS b) AS beat_age
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status IN ('ok', 'partial') ORDER BY id DESC LIMIT 1)
            AS good ON true
  LEFT JOIN LATERAL (
         SELECT * FROM {schema}.mailglass_reconcile_runs
          WHERE kind = 'full' AND tenant_id IS NULL AND status <> 'duplicate' ORDER BY id DESC LIMIT 1)
            AS last ON true
"""

_MAY_READ = "SELECT coalesce(has_table_privilege(to_regclass(:table), 'SELECT'), false)"

START_BEAT = "start beat (`celery -A mailglass_reconcile beat`, or that of your own app), or run sweeps from cron"
NEVER = "beat has never asked for a sweep"
ALONE = "sweeps run without Celery"


def without_celery(found: Iterable[Finding]) -> bool:
    """Whether sweeps run in time although nobody asks Celery for them: from cron, or from an application."""
    return any(one.check == "beat" and one.status == OK and ALONE in one.message for one in found)


def sweeps(tx: Transaction) -> Iterator[Finding]:
    """Check that full sweeps succeed, and that beat asks for them if it ever did."""
    row = tx.execute(_RUNS).one()
    late = row.age is None or row.age > LATE_SECONDS
    if row.status == "failed":
        yield error(
            "sweeps",
            f"the last full sweep failed {_ago(row.last_age)} ({shown(row.error or 'it broke off')})",
            "run `mailglass-reconcile sweep`: it says what is in its way",
        )
    elif row.age is None:
        yield warning("sweeps", "no full sweep has run yet", f"run `mailglass-reconcile sweep`, then {START_BEAT}")
    elif late:
        yield error(
            "sweeps",
            f"the last full sweep that succeeded ended {_ago(row.age)}",
            "look at the findings worker, queues, lock and beat; or run `mailglass-reconcile sweep`",
        )
    else:
        yield ok("sweeps", f"the last full sweep succeeded {_ago(row.age)}, asked for by {row.origin}")
    if row.beat_age is not None and row.beat_age <= LATE_SECONDS:
        yield ok("beat", f"beat asked for a sweep {_ago(row.beat_age)}")
    elif not late and row.beat_age is None:
        alone = "the last one was a call of the task" if row.origin == "call" else f"{ALONE}, by {row.origin}"
        yield ok("beat", f"{NEVER}; {alone}")
    elif row.beat_age is None:
        yield warning("beat", NEVER, START_BEAT)
    elif late:
        yield error("beat", f"beat asked for a sweep {_ago(row.beat_age)}, and not since", START_BEAT)
    else:
        yield warning(
            "beat", f"beat asked for a sweep {_ago(row.beat_age)}, and not since; {row.origin} does now", START_BEAT
        )


def handlers(tx: Transaction) -> Iterator[Finding]:
    """Check that no event is dead, and that somebody handles those that wait."""
    if not tx.execute(_MAY_READ, {"table": tx.name_of("mailglass_hook_outbox")}).scalar_one():
        yield ok("handlers", "this role may not read mailglass_hook_outbox, so events for handlers were not counted")
        return
    waiting, dead = outbox.count(tx)
    known = ", ".join(map(shown, sorted(registry.types())))
    if dead:
        yield error(
            "handlers",
            f"{dead} events are dead: their handlers have failed for the last time and are not tried again",
            "`mailglass-reconcile dispatch --dead` says which error; correct the handler, then let them be tried again"
            " as `mailglass-reconcile dispatch --help` says",
        )
    if waiting and not known:
        yield warning(
            "handlers",
            f"{waiting} events wait for a handler, and none is registered in this process",
            "name the module of your handlers in MAILGLASS_IMPORTS, for the worker too",
        )
    elif not dead:
        yield ok("handlers", f"handlers of {known or 'no type'} are registered; {waiting} events wait, none is dead")


def _ago(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} seconds ago"
    return f"{seconds // 60} minutes ago" if seconds < 7_200 else f"{seconds // 3_600} hours ago"
