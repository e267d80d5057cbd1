"""Whether handlers run: what waits too long, fails or is dead, and what nobody hands to them."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules.humanize import age, counted
from mailglass_reconcile.store import handled, outbox
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.outbox import Facts

LATE_SECONDS = 300.0
"""By then, dispatches every ten seconds have passed an event over thirty times."""


class Problem(NamedTuple):
    """What is wrong, and a step that helps; *grave* if handlers do not run."""

    grave: bool
    sentence: str
    remedy: str


def problems(facts: Facts, left_out: list[str]) -> list[Problem]:
    """Return what is wrong.

    Args:
        facts: Of the outbox.
        left_out: The types that have a handler and that a process does not hand on.
    """
    found = []
    if facts.dead:
        found.append(
            Problem(
                True,
                f"{counted(facts.dead, 'event is dead: its', 'events are dead: their')} handlers have failed for the"
                " last time and are not tried again",
                "`mailglass-reconcile dispatch --dead` names the error; correct the handler, then run"
                " `mailglass-reconcile dispatch --retry`",
            )
        )
    if facts.overdue_seconds > LATE_SECONDS:
        found.append(
            Problem(
                True,
                f"an event has waited {age(facts.overdue_seconds)} for its handlers: no dispatch runs that has them",
                "check that beat has the dispatch of `beat_schedule` and that a worker with the handlers' module in"
                " MAILGLASS_IMPORTS takes it, or run `mailglass-reconcile dispatch` from cron",
            )
        )
    if facts.failing:
        found.append(
            Problem(
                False,
                f"{counted(facts.failing, 'event has', 'events have')} failed {outbox.FAILING_ATTEMPTS} times or more",
                "the log of the dispatching process names handler, error and line",
            )
        )
    if left_out:
        found.append(
            Problem(
                True,
                f"events of types with a handler ({', '.join(left_out)}) were recorded or linked in the last hour"
                " without an outbox row",
                "in every process that records or sweeps, name the handlers' module in MAILGLASS_IMPORTS, or set"
                f" MAILGLASS_HOOK_TYPES={','.join(left_out)}",
            )
        )
    return found


def look(tx: Transaction) -> list[Problem]:
    """Return what is wrong, by two queries whose cost does not depend on what is open."""
    return problems(outbox.facts(tx), handled.left_out(tx))
