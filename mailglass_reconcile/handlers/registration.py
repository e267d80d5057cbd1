"""Registration of handlers: a process writes its own into the database, which then enqueues jobs for them."""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DatabaseRefusedError, MailglassReconcileError, format_command
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.store import handled_types
from mailglass_reconcile.store.database import Database, OpenConnection, uuid7_bounds
from mailglass_reconcile.store.handled_types import Registration
from mailglass_reconcile.store.outbox import NewJob

logger = logging.getLogger(__name__)

MISSED_DAYS = 7


def own_registrations() -> list[Registration]:
    """Return the handlers of this process, each with each of its types."""
    return [
        Registration(handler.name, type_)
        for handler in registry.registered_handlers()
        for type_ in sorted(handler.types)
    ]


def register_before_sweep(database: Database) -> None:
    """Register this process's handlers, if it has any, so that they run on the events that a sweep links next.

    A role without the privilege to do so sweeps anyway.
    """
    runtime.load_imports()
    try:
        register(database)
    except DatabaseRefusedError as error:
        logger.warning("cannot register this process's handlers, which a dispatcher may do: %s", error)


def register(database: Database) -> None:
    """Register this process's handlers, if it has any."""
    if registrations := own_registrations():
        with database.writing() as tx:
            new_registrations = handled_types.register(tx, registrations)
        log_missed(database, new_registrations)


def log_missed(database: Database, new_registrations: Sequence[Registration]) -> None:
    """Log how many events of the last days each new handler has missed, and the command that enqueues them."""
    if not new_registrations:
        return
    limits = database.limits
    stop = time.monotonic() + limits.missed_seconds
    numbers = Counter[Registration]()
    complete = True
    try:
        with database.connect() as connected:
            for jobs in missed_pages(connected, new_registrations, MISSED_DAYS * 86_400):
                numbers.update(Registration(job.handler, job.type) for job in jobs)
                complete = numbers.total() <= limits.most_missed and time.monotonic() < stop
                if not complete:
                    break
    except MailglassReconcileError as error:
        logger.warning("cannot count the events that new handlers have missed: %s", error)
        return
    for registration, number in sorted(numbers.items()):
        events = pluralize(min(number, limits.most_missed), f"{registration.type} event")
        logger.warning(
            "handler %s is new: %s of the last %d days had no such handler; to run it on them, run as the"
            " owner of the tables: %s --replay %s --since %dd --handler %s",
            registration.handler,
            events if complete else f"at least {events}",
            MISSED_DAYS,
            format_command("mailglass-reconcile dispatch"),
            registration.type,
            MISSED_DAYS,
            shlex.quote(registration.handler),
        )


def missed_pages(
    connected: OpenConnection, registrations: Sequence[Registration], seconds: float
) -> Iterator[list[NewJob]]:
    """Yield the jobs that registrations lack, of events that reached a delivery within *seconds*, the newest first.

    Each list is of one page of the ledger; ids of events are UUIDv7, in the order of their time.
    """
    bounds = uuid7_bounds(seconds)
    while True:
        with connected.reading() as tx:
            page = handled_types.missed(tx, registrations, **bounds, size=tx.limits.batch_rows)
        if page.last is None:
            return
        yield page.jobs
        bounds["until_id"] = page.last
