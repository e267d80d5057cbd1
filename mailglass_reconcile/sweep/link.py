"""One batch: the transaction that links, and what to do when it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import LOCK_NOT_AVAILABLE, is_of_data, is_outage, sqlstate, translated
from mailglass_reconcile.store import ledger, open_orphans, privileges
from mailglass_reconcile.store.database import PAUSE_SECONDS, Connected, Transaction, in_progress, with_retries
from mailglass_reconcile.store.ledger import LinkedEvent

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]
Notes = Mapping[str, Mapping[str, Any]]
"""What else the appended event's metadata says, by orphan id."""

DOUBT_SECONDS = 5
"""How long an attempt waits for a COMMIT whose answer was lost, and which may wait for a replica itself."""


@dataclass(slots=True)
class Batch:
    """The result for a batch's orphans; those that are missing here were not reached in time.

    `settled` ones were open although the ledger had their `reconciled` event; `held` ones another session has.
    """

    linked: list[LinkedEvent] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    settled: int = 0
    held: int = 0
    outage: DBAPIError | None = None
    """A passing fault that did not pass, and ended the batch: what is in the lists was done before."""

    def add(self, pairs: int, done: _Attempt) -> None:
        """Add what a transaction on so many *pairs* has committed."""
        self.linked += done.linked
        self.settled += done.claimed - len(done.linked) - len(done.taken)
        self.held += pairs - done.claimed
        self.failed += done.taken
        for event_id in done.taken:
            logger.error("orphan %s cannot be linked: another kind of event holds its key; it stays open", event_id)
        telemetry.note_lags(map(attrgetter("lag_seconds"), done.linked))


@dataclass(slots=True)
class _Attempt:
    """What one transaction does, or was about to commit when its connection was lost.

    `taken` are the orphans whose key an event of another kind holds.
    """

    linked: list[LinkedEvent] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    claimed: int = 0
    xact_id: str = ""
    error: DBAPIError | None = None


def link_batch(connected: Connected, pairs: Pairs, expired: Callable[[], bool], notes: Notes | None = None) -> Batch:
    """Link what can be linked of *pairs*, each link committed whole or not at all.

    A batch that fails on its data is halved until the culprit stands alone, which is reported and left open. A
    lost connection, a deadlock and the like are tried again, a bounded number of times. No transaction begins after
    the sweep has *expired*.

    Raises:
        DatabaseRefusedError: This role lacks a right; the message has the GRANT.
    """
    batch = Batch()
    waiting = [list(pairs)]
    while waiting and not batch.outage and not expired():
        part = waiting.pop()
        try:
            batch.add(len(part), with_retries(partial(_attempt, connected, part, notes or {}, _Attempt())))
        except DBAPIError as error:
            waiting += _after_failure(connected, batch, part, error)
    return batch


def _after_failure(connected: Connected, batch: Batch, part: Pairs, error: DBAPIError) -> list[list[tuple[str, str]]]:
    """Note why *part* could not be linked, or return its halves."""
    if is_outage(error):
        batch.outage = error
        return []
    privileges.require_privileges(connected, error)
    if len(part) > 1:
        middle = len(part) // 2
        return [list(part[middle:]), list(part[:middle])]
    if sqlstate(error) == LOCK_NOT_AVAILABLE:
        batch.held += 1
        return []
    batch.failed.append(part[0][0])
    logger.error("orphan %s cannot be linked and stays open: %s", part[0][0], translated(error))
    return []


def link_in(tx: Transaction, pairs: Pairs, notes: Notes) -> list[LinkedEvent]:
    """Link *pairs* in a caller's transaction, and return the linked.

    What cannot be linked because of its own data costs a savepoint and stays open.
    """
    if not pairs:
        return []
    try:
        with tx.connection.begin_nested():
            linked, _ = _linked(tx, pairs, notes)
    except DBAPIError as error:
        if not is_of_data(error):
            raise
        logger.error("events of a send cannot be linked (SQLSTATE %s); the next sweep tries again", sqlstate(error))
        return []
    return linked


def _attempt(connected: Connected, pairs: Pairs, notes: Notes, doubtful: _Attempt) -> _Attempt:
    """Link *pairs*, unless *doubtful*, what an earlier attempt was about to commit, turns out to be there."""
    try:
        if not (doubtful.linked and _was_committed(connected, doubtful)):
            _link(connected, pairs, notes, doubtful)
    except DBAPIError as error:
        doubtful.error = error
        raise
    return doubtful


def _was_committed(connected: Connected, doubtful: _Attempt) -> bool:
    """Wait for the end of the transaction in doubt, and look whether its events are there."""
    deadline = time.monotonic() + DOUBT_SECONDS
    while True:
        with connected.writing() as tx:  # the server that takes writes, not a replica's snapshot
            if not in_progress(tx, doubtful.xact_id):
                return ledger.present(tx, doubtful.linked[0].reconciled_id or "")
        if doubtful.error and time.monotonic() > deadline:
            raise doubtful.error
        time.sleep(PAUSE_SECONDS)


def _link(connected: Connected, pairs: Pairs, notes: Notes, doubtful: _Attempt) -> None:
    """Link in one transaction, and close; *doubtful* receives what it is about to commit.

    Closing is a statement after the link: it takes away the ids too that another sweep stored until the link claimed.
    """
    doubtful.linked, doubtful.taken, doubtful.claimed = [], [], 0
    with connected.linking() as tx:
        linked, known = _linked(tx, pairs, notes)
        # Of those that were linked before although they were open, some have a key that another kind of event holds.
        taken = ledger.not_reconciled(tx, [one.event_id for one in known]) if known else set()
        done = linked + [one for one in known if one.event_id not in taken]
        open_orphans.close(tx, [one.event_id for one in done], [one.event_id for one in done if one.keyed])
        doubtful.linked, doubtful.taken, doubtful.xact_id = linked, sorted(taken), tx.xact_id or ""
        doubtful.claimed = len(linked) + len(known)


def _linked(tx: Transaction, pairs: Pairs, notes: Notes) -> tuple[list[LinkedEvent], list[LinkedEvent]]:
    """Return what was linked, and what was claimed but whose key the ledger held already."""
    claimed = ledger.link(tx, pairs, notes)
    return [one for one in claimed if one.reconciled_id], [one for one in claimed if not one.reconciled_id]
