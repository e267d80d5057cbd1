"""Manual administration of handlers and their jobs: retry, replay and forget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from uuid import UUID

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.handlers import registration
from mailglass_reconcile.rules.event_types import TYPES
from mailglass_reconcile.rules.humanize import did_you_mean, format_duration, pluralize, sanitize
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.tables import handled_types, handler_jobs
from mailglass_reconcile.store.tables.handled_types import Registered, Registration

UNSEEN_SECONDS = 20 * 60
"""Seconds after which no dispatcher has a handler any more: each writes its own every ten minutes."""


def retry(database: Database, event_id: UUID | None = None, handler: str | None = None) -> int:
    """Make dead and failing jobs due now, dead ones as if they were new; return their number.

    All, or those of an event, of a handler, or of both. What is done stays done.
    """
    selection = {"event_id": None if event_id is None else str(event_id), "handler": handler}
    with database.connect() as connected:
        return connected.in_batches(handler_jobs.RETRY, selection)


def load_replayable(database: Database, type_: str, seconds: float, handler: str | None = None) -> list[Registration]:
    """Load the registered handlers of a type, for which events of the last *seconds* can be enqueued once each.

    A MailglassReconcileError says that there are none, a ValueError that finished jobs are not kept for so long.
    """
    _require_kept(database.settings, seconds)
    runtime.load_imports()
    registration.register(database)
    with database.reading() as tx:
        registrations = handled_types.load_registered(tx)
    selected = _select(registrations, type_, handler)
    if not selected:
        raise MailglassReconcileError(
            f"{_none_registered(registrations, type_, handler)}: a dispatch with its module registers it"
        )
    return [Registration(row.handler, row.type) for row in selected]


def _require_kept(settings: Settings, seconds: float) -> None:
    days = settings.retention_succeeded_days
    if days is not None and seconds >= days * 86_400:
        raise ValueError(
            f"what handlers have done is kept for {days} days (MAILGLASS_RETENTION_SUCCEEDED_DAYS); of older events"
            " they could do it again"
        )


def count_missed(database: Database, registrations: Sequence[Registration], seconds: float) -> int:
    """Count the jobs that `replay` would enqueue."""
    with database.connect() as connected:
        return sum(map(len, registration.missed_pages(connected, registrations, seconds)))


def replay(database: Database, registrations: Sequence[Registration], seconds: float) -> int:
    """Enqueue the jobs that registrations lack, of events that reached a delivery within *seconds*; return how many.

    An event that has a job of a handler, in any state, gets no second one.
    """
    enqueued = 0
    with database.connect() as connected:
        for jobs in registration.missed_pages(connected, registrations, seconds):
            with connected.writing() as tx:
                enqueued += handler_jobs.enqueue(tx, jobs)
    return enqueued


def load_registrations(database: Database, type_: str | None, handler: str | None) -> tuple[list[Registered], int]:
    """Load the registrations of a type, a handler or both to forget, and count their waiting jobs.

    Raises:
        MailglassReconcileError: There are none, or a dispatcher still has one, and would register it again.
    """
    with database.reading() as tx:
        registrations = handled_types.load_registered(tx)
        waiting = handled_types.count_waiting_jobs(tx, type_=type_, handler=handler)
    selected = _select(registrations, type_, handler)
    if not selected and not waiting:
        raise MailglassReconcileError(f"{_none_registered(registrations, type_, handler)}, and no job of it waits")
    _require_unseen(selected)
    return selected, waiting


def _require_unseen(registrations: Sequence[Registered]) -> None:
    last = min(registrations, key=lambda row: row.seen_seconds, default=None)
    if last is not None and last.seen_seconds < UNSEEN_SECONDS:
        remaining = math.ceil((UNSEEN_SECONDS - last.seen_seconds) / 60)
        raise MailglassReconcileError(
            f"{sanitize(last.seen_by)} had handler {sanitize(last.handler)} {format_duration(last.seen_seconds)} ago,"
            " and would register it again: stop each process that has it, and run this again in"
            f" {pluralize(remaining, 'minute')}"
        )


def forget(database: Database, type_: str | None, handler: str | None) -> int:
    """Stop enqueuing jobs for a type, a handler or both; delete the waiting ones, and return their number."""
    with database.connect() as connected:
        with connected.writing() as tx:
            handled_types.forget(tx, type_=type_, handler=handler)
        return connected.in_batches(handler_jobs.DELETE_WAITING, {"type": type_, "handler": handler})


def _select(registrations: Sequence[Registered], type_: str | None, handler: str | None) -> list[Registered]:
    return [row for row in registrations if type_ in (None, row.type) and handler in (None, row.handler)]


def _none_registered(registrations: Sequence[Registered], type_: str | None, handler: str | None) -> str:
    names = sorted({row.handler for row in registrations})
    if handler is not None and handler not in names:
        return f"no dispatcher has registered a handler {handler!r}{did_you_mean(handler, names, ' ({})')}"
    subject = f"a handler of {type_!r}" if handler is None else f"{handler!r} for {type_!r}"
    return f"no dispatcher has registered {subject}{did_you_mean(type_ or '', TYPES, ' ({})')}"
