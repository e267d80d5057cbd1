"""One batch: the transaction that claims, appends and projects; and what to do when it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, telemetry
from mailglass_reconcile.errors import LOCK_NOT_AVAILABLE, is_outage, sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import ledger, open_orphans
from mailglass_reconcile.store.database import PAUSE_SECONDS, Transaction, in_progress, transaction, with_retries
from mailglass_reconcile.store.model import Claimed, Link, Report

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]

LOCK_TIMEOUT_MS = 100
"""Below Postgres's deadlock_timeout of one second: a batch gives way long before it could be in a deadlock."""
STATEMENT_TIMEOUT_MS = 30_000
DOUBT_SECONDS = 5
"""How long an attempt waits for a COMMIT whose answer was lost, and which may wait for a stand-by itself."""


@dataclass(slots=True)
class Outcome:
    """What became of a batch's orphans; those that are nowhere here are settled, or were not reached in time."""

    links: list[Link] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    held: int = 0
    outage: DBAPIError | None = None
    """A passing fault that did not pass, and ended the batch: what is in the lists was done before."""


@dataclass(slots=True)
class _Done:
    """What one transaction does, or was about to commit when its connection was lost.

    `taken` are the orphans whose key an event of another kind holds.
    """

    links: list[Link] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    claimed: int = 0
    xact_id: str = ""
    error: DBAPIError | None = None


def link_batch(connection: sa.Connection, settings: Settings, pairs: Pairs, expired: Callable[[], bool]) -> Outcome:
    """Link what can be linked of *pairs*, each link committed whole or not at all.

    A batch that fails on its data is halved until the culprit stands alone, which is reported and left open. A
    lost connection, a deadlock and the like are tried again, a bounded number of times.

    Args:
        connection: An open connection without a transaction.
        settings: Whose scope the transactions have.
        pairs: `(orphan id, delivery id)`, as the match found them.
        expired: Whether the sweep's deadline has passed; checked before each transaction.
    """
    outcome = Outcome()
    waiting = [list(pairs)]
    while waiting and not expired():
        part = waiting.pop()
        doubtful = _Done()
        try:
            done = with_retries(partial(_attempt, connection, settings, part, doubtful))
        except DBAPIError as error:
            if is_outage(error):
                outcome.outage = error
                return outcome
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            elif sqlstate(error) == LOCK_NOT_AVAILABLE:
                outcome.held += 1
            else:
                outcome.failed.append(part[0][0])
                logger.error("orphan %s cannot be linked (SQLSTATE %s); it stays open", part[0][0], sqlstate(error))
        else:
            outcome.links += done.links
            telemetry.note_lags(link.lag_seconds for link in done.links)
            outcome.failed += done.taken
            outcome.held += len(part) - done.claimed
    return outcome


def _attempt(connection: sa.Connection, settings: Settings, pairs: Pairs, doubtful: _Done) -> _Done:
    """Link *pairs*, unless *doubtful*, what an earlier attempt was about to commit, turns out to be there."""
    try:
        if not (doubtful.links and _was_committed(connection, settings, doubtful)):
            _link(connection, settings, pairs, doubtful)
    except DBAPIError as error:
        doubtful.error = error
        raise
    return doubtful


def _was_committed(connection: sa.Connection, settings: Settings, doubtful: _Done) -> bool:
    """Wait for the end of the transaction in doubt, and look whether its events are there."""
    deadline = time.monotonic() + DOUBT_SECONDS
    while True:
        with transaction(connection, settings, read_only=True) as tx:
            if not in_progress(tx, doubtful.xact_id):
                return ledger.present(tx, doubtful.links[0].event_id)
        if doubtful.error and time.monotonic() > deadline:
            raise doubtful.error
        time.sleep(PAUSE_SECONDS)


def _link(connection: sa.Connection, settings: Settings, pairs: Pairs, doubtful: _Done) -> None:
    """Claim, append, close, project, in one transaction; *doubtful* receives what it is about to commit."""
    doubtful.links, doubtful.taken, doubtful.claimed = [], [], 0
    with transaction(
        connection,
        settings,
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        statement_timeout_ms=STATEMENT_TIMEOUT_MS,
        probes_only=True,
        removes_itself=True,
    ) as tx:
        settled = settle(tx, pairs)
        closed = [c for c in settled.claimed if c.event_id not in settled.taken]
        open_orphans.close(tx, [c.event_id for c in closed], [c.event_id for c in closed if c.keyed])
        if settled.links:
            projector.project(tx, settled.reports)
        doubtful.xact_id = tx.xact_id or ""
        doubtful.links, doubtful.taken, doubtful.claimed = settled.links, sorted(settled.taken), len(settled.claimed)


class Settled(NamedTuple):
    """What a transaction has claimed, the links that it has appended with what to project, and the keys taken."""

    claimed: list[Claimed]
    links: list[Link]
    reports: list[Report]
    taken: set[str]


def settle(tx: Transaction, pairs: Pairs) -> Settled:
    """Claim what nobody else holds of *pairs*, and append its `reconciled` events; the caller projects them."""
    claimed = ledger.append_reconciled(tx, pairs)
    new = [c for c in claimed if c.appended]
    return Settled(
        claimed,
        [
            Link(c.reconciled_id, c.event_id, c.delivery_id, c.tenant_id, c.type, c.occurred_at, c.lag_seconds)
            for c in new
        ],
        [Report(c.delivery_id, c.type, c.occurred_at, c.arrived_at, c.event_id) for c in new],
        _taken(tx, [c.event_id for c in claimed if not c.appended]),
    )


def _taken(tx: Transaction, event_ids: Sequence[str]) -> set[str]:
    """Return those orphans whose key `reconciled:<id>` is held by an event that does not reconcile them."""
    taken = ledger.not_reconciled(tx, event_ids) if event_ids else set()
    for event_id in taken:
        logger.error("orphan %s cannot be linked: another kind of event holds its key; it stays open", event_id)
    return taken
