"""One batch: the transaction that claims, appends and projects; and what to do when it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector
from mailglass_reconcile.errors import LOCK_NOT_AVAILABLE, is_outage, is_passing, sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import ledger, open_orphans
from mailglass_reconcile.store.database import in_progress, transaction
from mailglass_reconcile.store.model import Link, Report

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]

ATTEMPTS = 4
PAUSE_SECONDS = 0.1
LOCK_TIMEOUT_MS = 100
"""Below Postgres's deadlock_timeout of one second: a batch gives way long before it could be in a deadlock."""
STATEMENT_TIMEOUT_MS = 30_000
DOUBT_SECONDS = 5
"""How long an attempt waits for a COMMIT whose answer was lost, and which may wait for a stand-by itself."""


@dataclass(slots=True)
class _Doubt:
    """What an attempt was about to commit when its connection was lost."""

    links: list[Link] = field(default_factory=list)
    xact_id: str = ""
    error: DBAPIError | None = None


@dataclass(slots=True)
class Outcome:
    """What became of a batch's orphans; those in neither list were held or settled by somebody else."""

    links: list[Link] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outage: DBAPIError | None = None
    """A passing fault that did not pass, and ended the batch: what is in the lists was done before."""


def link_batch(connection: sa.Connection, settings: Settings, pairs: Pairs, expired: Callable[[], bool]) -> Outcome:
    """Link what can be linked of *pairs*, each link committed whole or not at all.

    A batch that fails on its data is halved until the culprit stands alone, which is reported and left open. A
    lost connection, a deadlock and the like are tried again, a bounded number of times.

    Args:
        connection: An open connection without a transaction.
        settings: Whose scope the transactions have.
        pairs: `(orphan id, delivery id)`, as `linking.match` found them.
        expired: Whether the sweep's deadline has come; checked before each transaction.
    """
    outcome = Outcome()
    waiting = [list(pairs)]
    while waiting and not expired():
        part = waiting.pop()
        try:
            outcome.links += _with_retries(connection, settings, part)
        except DBAPIError as error:
            if is_outage(error):
                outcome.outage = error
                return outcome
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            elif sqlstate(error) != LOCK_NOT_AVAILABLE:
                outcome.failed.append(part[0][0])
                logger.error("orphan %s cannot be linked (SQLSTATE %s); it stays open", part[0][0], sqlstate(error))
    return outcome


def _with_retries(connection: sa.Connection, settings: Settings, pairs: Pairs) -> list[Link]:
    doubt = _Doubt()
    for attempt in range(1, ATTEMPTS):
        try:
            return _attempt(connection, settings, pairs, doubt)
        except DBAPIError as error:
            if not is_passing(error):
                raise
            doubt.error = error
            logger.warning("a batch is tried again (SQLSTATE %s, attempt %d)", sqlstate(error), attempt)
            time.sleep(PAUSE_SECONDS * attempt)
    return _attempt(connection, settings, pairs, doubt)


def _attempt(connection: sa.Connection, settings: Settings, pairs: Pairs, doubt: _Doubt) -> list[Link]:
    """Link *pairs*, unless what an earlier attempt was about to commit turns out to be there."""
    if doubt.links:
        if _was_committed(connection, settings, doubt):
            return doubt.links
        doubt.links.clear()
    _link(connection, settings, pairs, doubt)
    return doubt.links


def _was_committed(connection: sa.Connection, settings: Settings, doubt: _Doubt) -> bool:
    """Wait for the end of the transaction in doubt, and look whether its events are there."""
    deadline = time.monotonic() + DOUBT_SECONDS
    while True:
        with transaction(connection, settings, read_only=True) as tx:
            if not in_progress(tx, doubt.xact_id):
                return ledger.present(tx, doubt.links[0].event_id)
        if doubt.error and time.monotonic() > deadline:
            raise doubt.error
        time.sleep(PAUSE_SECONDS)


def _link(connection: sa.Connection, settings: Settings, pairs: Pairs, doubt: _Doubt) -> None:
    """Claim, append, close, project, in one transaction; *doubt* receives what it is about to commit."""
    with transaction(
        connection,
        settings,
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        statement_timeout_ms=STATEMENT_TIMEOUT_MS,
        probes_only=True,
        removes_itself=True,
    ) as tx:
        claimed = open_orphans.claim(tx, pairs)
        if not claimed:
            return
        ids = [ledger.uuid7() for _ in claimed]
        inserted = ledger.append_reconciled(tx, ids, [c.event_id for c in claimed], [c.delivery_id for c in claimed])
        open_orphans.close(tx, (c.event_id for c in claimed))
        new = [(id_, c) for id_, c in zip(ids, claimed, strict=True) if id_ in inserted]
        projector.project(tx, [Report(c.delivery_id, c.type, c.occurred_at, c.arrived_at) for _, c in new])
        doubt.xact_id = tx.xact_id or ""
        doubt.links += [Link(i, c.event_id, c.delivery_id, c.tenant_id, c.type, c.occurred_at) for i, c in new]
