"""Whether handlers run: what waits too long, fails or is dead, and types without a dispatcher."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.rules.humanize import age, counted
from mailglass_reconcile.store import handled, outbox
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.handled import Unseen
from mailglass_reconcile.store.outbox import Facts

LATE_SECONDS = 300.0
"""By then, dispatches every ten seconds have passed an event over thirty times."""


class Problem(NamedTuple):
    """What is wrong, and a step that helps; *grave* if handlers do not run."""

    grave: bool
    sentence: str
    remedy: str


def problems(facts: Facts, unseen: list[Unseen]) -> list[Problem]:
    """Return what is wrong.

    Args:
        facts: Of the outbox.
        unseen: The types that no dispatcher has named for an hour.
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
                "`mailglass-reconcile dispatch --waiting` shows handler, error and next attempt; the log of the"
                " dispatching process has the line",
            )
        )
    return found + list(map(_without_dispatcher, unseen))


def _without_dispatcher(one: Unseen) -> Problem:
    """Say that events of a type wait for handlers that no process has."""
    return Problem(
        True,
        f"no dispatcher has named a handler of {one.type} for {age(one.seconds)}, and events of this type wait for one",
        "start a dispatcher that has the handlers' module in MAILGLASS_IMPORTS; if the handlers are gone for good, run"
        f" `mailglass-reconcile dispatch --forget {one.type}`",
    )


def look(tx: Transaction) -> list[Problem]:
    """Return what is wrong, by two queries whose cost does not depend on what is open."""
    return problems(outbox.facts(tx), handled.unseen(tx))
