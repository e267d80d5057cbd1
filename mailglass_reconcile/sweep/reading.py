"""Reading a slice of open orphans and judging it, in one snapshot; what cannot be read delays nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import is_of_data, sqlstate
from mailglass_reconcile.store import open_orphans, privileges
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.sweep.deadline import Deadline
from mailglass_reconcile.sweep.judge import Judged, judge

logger = logging.getLogger(__name__)

Retried = Callable[[Callable[[], list[Judged]]], list[Judged]]


@dataclass(slots=True)
class Found:
    """Some orphans that were judged; how many were closed by then; and those that cannot be read."""

    judged: list[Judged] = field(default_factory=list)
    closed: int = 0
    unreadable: list[str] = field(default_factory=list)


def judged(connected: Connected, ids: Sequence[str], deadline: Deadline, retried: Retried) -> Found:
    """Judge orphans. If a row cannot be read, they are halved until that row stands alone.

    After the deadline, what is left of a slice that was halved is not judged. *retried* returns what a function
    returns, and calls it again if a fault is passing.
    """
    found = Found()
    waiting = [ids]
    while waiting and not (found.judged and deadline.is_over):
        part = waiting.pop()
        try:
            those = retried(partial(_judged, connected, part, deadline))
        except DBAPIError as error:
            waiting += _after_failure(connected, found, part, error)
        else:
            found.judged += those
            found.closed += len(part) - len(those)
    return found


def _judged(connected: Connected, ids: Sequence[str], deadline: Deadline) -> list[Judged]:
    with connected.reading(deadline.left_ms) as tx:
        return judge(tx, open_orphans.read(tx, ids))


def _after_failure(connected: Connected, found: Found, part: Sequence[str], error: DBAPIError) -> list[Sequence[str]]:
    """Return the halves of what cannot be read, or note the row that stands alone."""
    privileges.require_privileges(connected, error)
    if not is_of_data(error):
        raise error
    if len(part) > 1:
        middle = len(part) // 2
        return [part[middle:], part[:middle]]
    event_id = str(UUID(part[0]))
    logger.error("orphan %s cannot be read (SQLSTATE %s); it stays open", event_id, sqlstate(error))
    found.unreadable.append(event_id)
    return []
