"""Checks of handlers: jobs that wait too long, fail or are dead, and handlers without a dispatcher."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok, warning
from mailglass_reconcile.ops.checks.sweeps import WORKER_CHECKS
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import format_duration, pluralize
from mailglass_reconcile.rules.thresholds import HANDLERS_LATE_SECONDS
from mailglass_reconcile.store.tables import handler_jobs
from mailglass_reconcile.store.tables.handled_types import load_registered

DISPATCHERLESS_SECONDS = 3_600
"""Seconds without a registration after which a handler counts as one without a dispatcher."""


@check("handlers", fast=True)
def handlers(context: CheckContext) -> Iterator[Finding]:
    """Handlers run on what waits for them in time, and do not fail."""
    facts = context.outbox
    if facts.dead:
        yield error(
            f"{pluralize(facts.dead, 'job of a handler is dead: it has', 'jobs of handlers are dead: they have')}"
            " failed for the last time and will not be tried again",
            "`mailglass-reconcile dispatch --dead` names handler and error; correct the handler, then run"
            " `mailglass-reconcile dispatch --retry`",
        )
    if facts.overdue_seconds > HANDLERS_LATE_SECONDS:
        yield error(
            f"an event has waited {format_duration(facts.overdue_seconds)} for a handler: no dispatch runs that has it",
            "run `mailglass-reconcile dispatch` with the handlers' module in MAILGLASS_IMPORTS, from cron, or by the"
            " dispatch of `beat_schedule`",
            (*WORKER_CHECKS, "beat"),
        )
    if facts.failing:
        yield error(
            f"{pluralize(facts.failing, 'job of a handler has', 'jobs of handlers have')} failed"
            f" {handler_jobs.FAILING_ATTEMPTS} times or more",
            "`mailglass-reconcile dispatch --waiting` shows handler, error and next attempt; the log of the dispatching"
            " process has the line",
        )
    if context.is_full and facts.waiting and not registry.types_with_handlers():
        yield warning(
            f"{pluralize(facts.waiting, 'job waits', 'jobs wait')} for a handler, and none is registered in this"
            " process",
            "the module of your handlers must be in MAILGLASS_IMPORTS, for the worker too",
        )
    elif not (facts.dead or facts.failing or facts.overdue_seconds > HANDLERS_LATE_SECONDS):
        yield ok(f"{pluralize(facts.waiting, 'job waits', 'jobs wait')} for handlers, none is late, failing or dead")


@check("handled_types", fast=True)
def handled_types(context: CheckContext) -> Iterator[Finding]:
    """Each registered handler has a dispatcher."""
    unseen = [row for row in load_registered(context.tx) if row.seen_seconds > DISPATCHERLESS_SECONDS]
    for handler, grouped in groupby(unseen, attrgetter("handler")):
        rows = list(grouped)
        types = ", ".join(row.type for row in rows)
        yield error(
            f"no dispatcher has had the handler {handler} ({types}) for"
            f" {format_duration(min(row.seen_seconds for row in rows))}, so its jobs wait",
            "start a dispatcher with the handler's module in MAILGLASS_IMPORTS; if its function was"
            f" moved or renamed, give it name={handler!r}; if it is gone for good,"
            f" run `mailglass-reconcile dispatch --forget --handler {shlex.quote(handler)}` as the owner of the tables",
            (*WORKER_CHECKS, "beat"),
        )
    if not unseen:
        yield ok("every registered handler has a dispatcher")
