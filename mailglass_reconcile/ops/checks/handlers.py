"""Whether handlers run: what waits too long, fails or is dead, and which events are not handed to them."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.checks.check import Finding, Look, check, error, ok, warning
from mailglass_reconcile.ops.checks.sweeps import OF_THE_WORKER
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import age, counted
from mailglass_reconcile.rules.lateness import HANDLERS_LATE_SECONDS
from mailglass_reconcile.store import outbox


@check("handlers", cheap=True)
def handlers(look: Look) -> Iterator[Finding]:
    """Handlers run on what waits for them in time, and do not fail."""
    facts = look.outbox
    if facts.dead:
        yield error(
            f"{counted(facts.dead, 'event is dead: its', 'events are dead: their')} handlers have failed for the last"
            " time and are not tried again",
            "`mailglass-reconcile dispatch --dead` names the error; correct the handler, then run"
            " `mailglass-reconcile dispatch --retry`",
        )
    if facts.overdue_seconds > HANDLERS_LATE_SECONDS:
        yield error(
            f"an event has waited {age(facts.overdue_seconds)} for its handlers: no dispatch runs that has them",
            "run `mailglass-reconcile dispatch` with the handlers' module in MAILGLASS_IMPORTS, from cron, or by the"
            " dispatch of `beat_schedule`",
            (*OF_THE_WORKER, "beat"),
        )
    if facts.failing:
        yield error(
            f"{counted(facts.failing, 'event has', 'events have')} failed {outbox.FAILING_ATTEMPTS} times or more",
            "`mailglass-reconcile dispatch --waiting` shows handler, error and next attempt; the log of the dispatching"
            " process has the line",
        )
    if look.thorough and facts.waiting and not registry.types():
        yield warning(
            f"{counted(facts.waiting, 'event waits', 'events wait')} for a handler, and none is registered in this"
            " process",
            "name the module of your handlers in MAILGLASS_IMPORTS, for the worker too",
        )
    elif not (facts.dead or facts.failing or facts.overdue_seconds > HANDLERS_LATE_SECONDS):
        yield ok(f"{counted(facts.waiting, 'event waits', 'events wait')} for handlers, none is late, failing or dead")


@check("handled_types", cheap=True)
def handled_types(look: Look) -> Iterator[Finding]:
    """Each type that has handlers has a dispatcher."""
    for one in look.unseen:
        yield error(
            f"no dispatcher has named a handler of {one.type} for {age(one.seconds)}, so none runs on these events",
            "start a dispatcher that has the handlers' module in MAILGLASS_IMPORTS; if the handlers are gone for good,"
            f" run `mailglass-reconcile dispatch --forget {one.type}` as the owner of the tables",
            (*OF_THE_WORKER, "beat"),
        )
    if not look.unseen:
        yield ok("every type that has handlers has a dispatcher")
