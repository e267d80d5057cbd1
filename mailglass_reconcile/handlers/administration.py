"""Manual administration of handlers and their jobs: retry, replay, forget and rename."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from uuid import UUID

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.handlers import registration
from mailglass_reconcile.rules.event_types import TYPES
from mailglass_reconcile.rules.humanize import did_you_mean, pluralize
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import handled_types, outbox
from mailglass_reconcile.store.database import NIL, Database, OpenConnection, with_retries
from mailglass_reconcile.store.handled_types import Registered, Registration


def retry(database: Database, event_id: UUID | None = None, handler: str | None = None) -> int:
    """Make dead and failing jobs due now, dead ones as if they were new; return their number.

    All, or those of an event, of a handler, or of both. What is done stays done.
    """
    selection = {"event_id": None if event_id is None else str(event_id), "handler": handler}
    with database.connect() as connected:
        return connected.in_batches(outbox.RETRY, selection)


def load_replayable(database: Database, type_: str, seconds: float, handler: str | None = None) -> list[Registration]:
    """Load the registered handlers of a type, for which events of the last *seconds* can be enqueued once each.

    A MailglassReconcileError says that there are none, a ValueError that finished jobs are not kept for so long.
    """
    _require_kept(database.settings, seconds)
    runtime.load_imports()
    registration.register(database)
    with database.reading() as tx:
        selected = handled_types.load_registered(tx, type_=type_, handler=handler)
        all_registered = handled_types.load_registered(tx)
    for row in selected:
        if handler and row.renamed_to:
            raise MailglassReconcileError(
                f"handler {handler!r} was renamed to {row.renamed_to!r}: replay it under that name"
            )
    if not selected:
        raise MailglassReconcileError(
            f"{_none_registered(all_registered, type_, handler)}: a dispatch with its module registers it"
        )
    return [Registration(row.handler, row.type) for row in selected if not row.renamed_to]


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
                enqueued += outbox.enqueue(tx, jobs)
    return enqueued


def load_registrations(database: Database, type_: str | None, handler: str | None) -> tuple[list[Registered], int]:
    """Load the registrations of a type, a handler or both, and count their waiting jobs.

    If there is nothing to forget, an error says so.
    """
    with database.reading() as tx:
        selected = handled_types.load_registered(tx, type_=type_, handler=handler)
        is_renamed = any(row.renamed_to for row in selected)
        waiting = 0 if handler and is_renamed else handled_types.count_waiting_jobs(tx, type_=type_, handler=handler)
        all_registered = handled_types.load_registered(tx)
    if not selected and not waiting:
        raise MailglassReconcileError(f"{_none_registered(all_registered, type_, handler)}, and no job of it waits")
    return selected, waiting


def forget(database: Database, type_: str | None, handler: str | None) -> int:
    """Stop enqueuing jobs for a type, a handler or both; delete the waiting ones, and return their number.

    Jobs that wait under the old name of a renamed handler get its new name first. It raises an error while a dispatcher
    runs one of them.
    """
    selection = {"type": type_, "handler": handler}
    with database.connect() as connected:
        # Jobs of several old names are counted together.
        while _rename_waiting(connected) >= database.limits.batch_rows:
            pass
        with connected.writing() as tx:
            is_renamed = any(row.renamed_to for row in handled_types.load_registered(tx, type_=type_, handler=handler))
            if (
                handler
                and is_renamed
                and (running := handled_types.count_waiting_jobs(tx, type_=type_, handler=handler))
            ):
                # If its run fails, the registration is what gives it the new name.
                jobs = pluralize(running, "job still runs", "jobs still run")
                raise MailglassReconcileError(f"{jobs} under the old name {handler!r}: forget it when they have ended")
            handled_types.forget(tx, type_=type_, handler=handler)
        return 0 if handler and is_renamed else connected.in_batches(outbox.DELETE_WAITING, selection)


def _rename_waiting(connected: OpenConnection) -> int:
    def rename_jobs() -> int:
        with connected.writing() as tx:
            return outbox.rename_waiting(tx, tx.limits.batch_rows)

    return with_retries(rename_jobs)


def rename(database: Database, old: str, new: str) -> int:
    """Give a handler's jobs and registrations another name, and return how many jobs these were.

    The old name stays registered: jobs are enqueued under the new one, and a job that another transaction is writing
    under the old one is run by a dispatcher that has the new one. If no dispatcher has registered the old name, an
    error says so.
    """
    with database.connect() as connected:
        with connected.reading() as tx:
            all_registered = handled_types.load_registered(tx)
        if old not in {row.handler for row in all_registered}:
            raise MailglassReconcileError(_none_registered(all_registered, None, old))

        def rename_registrations() -> None:
            with connected.writing() as tx:
                handled_types.rename(tx, old, new)

        def rename_jobs(after: str) -> tuple[int, str | None]:
            with connected.writing() as tx:
                return outbox.rename(tx, old, after, tx.limits.batch_rows)

        with_retries(rename_registrations)
        after: str | None = NIL
        renamed = 0
        while after is not None:
            number, after = with_retries(partial(rename_jobs, after))
            renamed += number
    return renamed


def _none_registered(registrations: Sequence[Registered], type_: str | None, handler: str | None) -> str:
    names = sorted({row.handler for row in registrations})
    if handler is not None and handler not in names:
        return f"no dispatcher has registered a handler {handler!r}{did_you_mean(handler, names, ' ({})')}"
    subject = f"a handler of {type_!r}" if handler is None else f"{handler!r} for {type_!r}"
    return f"no dispatcher has registered {subject}{did_you_mean(type_ or '', TYPES, ' ({})')}"
