"""Registration of handlers: a process writes its own into the database, which then enqueues jobs for them."""

from __future__ import annotations

import logging
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DatabaseRefusedError, format_command
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.store.database import Database, OpenConnection, uuid7_bounds
from mailglass_reconcile.store.tables import handled_types
from mailglass_reconcile.store.tables.handled_types import Registration
from mailglass_reconcile.store.tables.handler_jobs import NewJob

logger = logging.getLogger(__name__)


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
        log_new(new_registrations)


def log_new(new_registrations: Sequence[Registration]) -> None:
    """Log each new handler, with the commands that enqueue the events of the last days that it has missed."""
    types: dict[str, list[str]] = defaultdict(list)
    for registration in sorted(new_registrations):
        types[registration.handler].append(registration.type)
    command = format_command("mailglass-reconcile dispatch")
    for handler, names in types.items():
        logger.warning(
            "handler %s is new: it runs on %s events from now on; for earlier ones run, as the owner of the tables: %s",
            handler,
            ", ".join(names),
            "; ".join(f"{command} --replay {name} --since 7d --handler {shlex.quote(handler)}" for name in names),
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
