"""One batch: the transactions that link it, and the outcome of each pair."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import LOCK_NOT_AVAILABLE, is_data_error, is_outage, sqlstate, translate
from mailglass_reconcile.linking.halving import RowFailure, run_halved
from mailglass_reconcile.store.database import OpenConnection, Transaction, with_retries
from mailglass_reconcile.store.tables import ledger
from mailglass_reconcile.store.tables.ledger import ClaimedEvent

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]
ExtraMetadata = Mapping[str, str]
"""Further metadata of the appended event, as JSON, by orphan id."""


@dataclass(slots=True)
class Batch:
    """The result for a batch's orphans; those that are missing here were not reached in time.

    `closed` ones are not open any more: the linked, and those that were open although the ledger had their `reconciled`
    event. `not_claimed` ones another session has locked or closed.
    """

    linked: list[ClaimedEvent] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_claimed: int = 0
    outage: DBAPIError | None = None
    """An outage that outlasted the retries and ended the batch: the lists hold the work before it."""

    def add(self, pairs: Pairs, claimed: Sequence[ClaimedEvent]) -> None:
        """Add the events that a transaction on *pairs* has claimed and committed."""
        linked = [event for event in claimed if event.reconciled_id]
        conflicting_ids = [event.event_id for event in claimed if not event.closed]
        self.linked += linked
        self.closed += [event.event_id for event in claimed if event.closed]
        self.not_claimed += len(pairs) - len(claimed)
        self.failed += conflicting_ids
        for event_id in conflicting_ids:
            logger.error("orphan %s cannot be linked: another kind of event holds its key; it stays open", event_id)
        telemetry.record_lags(event.lag_seconds for event in linked)

    def add_failure(self, event_id: str, error: DBAPIError) -> None:
        """Add an orphan that cannot be linked because of *error*."""
        if sqlstate(error) == LOCK_NOT_AVAILABLE:
            self.not_claimed += 1
            return
        self.failed.append(event_id)
        logger.error("orphan %s cannot be linked and stays open: %s", event_id, translate(error))


def link_batch(
    connected: OpenConnection, pairs: Pairs, is_over: Callable[[], bool], extra_metadata: ExtraMetadata | None = None
) -> Batch:
    """Link *pairs* as far as possible, each link committed whole or not at all.

    A batch that fails on its data is halved until the culprit stands alone, which is reported and left open. A
    lost connection, a deadlock and the like are retried, a bounded number of times. If the answer of a COMMIT was lost,
    its linked orphans are not open any more, and were not claimed. No transaction begins once *is_over* returns True.

    Raises:
        DatabaseRefusedError: This role lacks a privilege; the message has the GRANT.
    """
    batch = Batch()

    def link(part: Pairs) -> list[ClaimedEvent]:
        with connected.linking() as tx:
            return ledger.link(tx, part, extra_metadata)

    def is_of_rows(error: DBAPIError) -> bool:
        return not is_outage(error)

    parts = run_halved(connected, pairs, link, retry=with_retries, is_of_rows=is_of_rows, is_over=is_over)
    try:
        for part, result in parts:
            if isinstance(result, RowFailure):
                batch.add_failure(part[0][0], result.error)
            else:
                batch.add(part, result)
    except DBAPIError as error:
        batch.outage = error
    return batch


def link_in(tx: Transaction, pairs: Pairs, extra_metadata: ExtraMetadata) -> list[ClaimedEvent]:
    """Link *pairs* in a caller's transaction, and return the linked.

    Orphans that cannot be linked because of their own data cost a savepoint and stay open.
    """
    if not pairs:
        return []
    try:
        with tx.connection.begin_nested():
            claimed = ledger.link(tx, pairs, extra_metadata)
    except DBAPIError as error:
        if not is_data_error(error):
            raise
        logger.error("events of a send cannot be linked (SQLSTATE %s); the next sweep tries again", sqlstate(error))
        return []
    return [event for event in claimed if event.reconciled_id]
