"""The types that handlers run on, when handlers come and go: forgetting one, and handing over what a new one missed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.event_types import TYPES
from mailglass_reconcile.rules.humanize import did_you_mean
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import handled
from mailglass_reconcile.store.database import Connected, Database, ids_of_last
from mailglass_reconcile.store.handled import Known, Missed

logger = logging.getLogger(__name__)

PAGE = 5_000
"""Rows of the ledger that are looked at, and of the outbox that are written, in one transaction."""


def see_before_sweep(database: Database) -> None:
    """Write down the types of this process's handlers, if it has any, so that they run on what a sweep links next.

    A role without the right to do so sweeps anyway.
    """
    runtime.load_imports()
    try:
        _see(database)
    except DatabaseRefusedError as error:
        logger.warning("cannot note the types of this process's handlers, which a dispatcher may do: %s", error)


def _see(database: Database) -> None:
    if types := sorted(registry.types()):
        with database.writing() as tx:
            handled.see(tx, types)


def known(database: Database, type_: str) -> Known:
    """Return how long ago a dispatcher had a handler of a type, and how many of its events wait.

    If there is nothing to forget, a LookupError says so.
    """
    with database.reading() as tx:
        found = handled.known(tx, type_)
    if found.seen_seconds is None and not found.waiting:
        hint = did_you_mean(type_, TYPES, " ({})")
        raise LookupError(f"no dispatcher ever had a handler of {type_!r}{hint}, and no event of this type waits")
    return found


def forget(database: Database, type_: str) -> int:
    """Hand over no further events of a type, delete those that wait, and return how many these were."""
    with database.connect() as connected:
        with connected.writing() as tx:
            handled.forget(tx, type_)
        return connected.in_batches(handled.DELETE_WAITING, {"type": type_, "size": PAGE})


def require_replayable(settings: Settings, type_: str, seconds: float) -> None:
    """Require that events of a type and an age can be handed over once each; a ValueError is about the age."""
    if type_ not in registry.types():
        hint = did_you_mean(type_, sorted(registry.types()), " ({})")
        raise ConfigurationError(
            f"no handler of {type_!r} is registered{hint}: name the module that registers it in MAILGLASS_IMPORTS"
        )
    days = settings.retention_succeeded_days
    if days is not None and seconds >= days * 86_400:
        raise ValueError(
            f"what handlers have done is kept for {days} days (MAILGLASS_RETENTION_SUCCEEDED_DAYS); of older events"
            " they could do it again"
        )


def missed(database: Database, type_: str, seconds: float) -> int:
    """Return how many events of a type, of the last so many *seconds*, `replay` would hand over."""
    with database.connect() as connected:
        return sum(len(page.pairs) for page in _pages(connected, type_, seconds))


def replay(database: Database, type_: str, seconds: float) -> int:
    """Hand over events of a type that reached a delivery within so many *seconds*, and return how many.

    A handler that is done with an event does not run on it again. Waiting and dead events are left as they are.
    """
    handed_over = 0
    _see(database)
    with database.connect() as connected:
        for page in _pages(connected, type_, seconds):
            with connected.writing() as tx:
                handed_over += handled.hand_over(tx, type_, page.pairs)
    return handed_over


def _pages(connected: Connected, type_: str, seconds: float) -> Iterator[Missed]:
    """Yield what was missed, a page of the ledger at a time; ids of events are UUIDv7, in the order of their time."""
    handlers = [one.name for one in registry.handlers_of(type_)]
    between = ids_of_last(seconds)
    while True:
        with connected.reading() as tx:
            page = handled.missed(tx, type_, handlers, between, PAGE)
        if page.last is None:
            return
        yield page
        between["after_id"] = page.last
