"""Reading a slice of open orphans and matching it; unreadable orphans delay no others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from uuid import UUID

from mailglass_reconcile.errors import is_data_error, sqlstate
from mailglass_reconcile.mailglass_compat import recipients
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.database import Connected, Transaction
from mailglass_reconcile.sweep.deadline import Deadline
from mailglass_reconcile.sweep.halving import Refused, Retry, run_halved
from mailglass_reconcile.sweep.matcher import OrphanMatch, match_orphans

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SliceResult:
    """The match results of a slice, the number of its orphans that were closed meanwhile, and the unreadable ones."""

    matches: list[OrphanMatch] = field(default_factory=list)
    closed: int = 0
    unreadable: list[str] = field(default_factory=list)


def match_slice(
    connected: Connected, ids: Sequence[str], deadline: Deadline, retry: Retry, *, of_any_age: bool
) -> SliceResult:
    """Read and match orphans; after the deadline, the rest of a slice that was halved is not matched."""
    slice_result = SliceResult()

    def reading() -> AbstractContextManager[Transaction]:
        return connected.reading(deadline.remaining_ms)

    def read(part: Sequence[str]) -> list[OrphanMatch]:
        orphans = open_orphans.read_of_any_age(reading, part) if of_any_age else open_orphans.read(reading, part)
        return match_orphans(reading, orphans, recipients.SLICE)

    def is_over() -> bool:
        return bool(slice_result.matches) and deadline.is_over

    for part, result in run_halved(connected, ids, read, retry=retry, is_of_rows=is_data_error, is_over=is_over):
        if isinstance(result, Refused):
            event_id = str(UUID(part[0]))
            logger.error("orphan %s cannot be read (SQLSTATE %s); it stays open", event_id, sqlstate(result.error))
            slice_result.unreadable.append(event_id)
        else:
            slice_result.matches += result
            slice_result.closed += len(part) - len(result)
    return slice_result
