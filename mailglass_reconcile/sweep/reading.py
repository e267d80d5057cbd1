"""Reading a slice of open orphans and matching it; unreadable orphans delay no others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import is_data_error, sqlstate
from mailglass_reconcile.linking.halving import Retry, RowFailure, run_halved
from mailglass_reconcile.linking.matcher import OrphanMatch, match_orphans
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.store.database import OpenConnection, Reading, Transaction
from mailglass_reconcile.store.queries.selection import Part
from mailglass_reconcile.store.tables import open_orphans
from mailglass_reconcile.store.tables.open_orphans import OrphanRow

logger = logging.getLogger(__name__)

FIRST_CHUNK, LEAST_CHUNK, MOST_CHUNK = 1_000, 500, 4_000
"""Orphans that are read at once: at first, at least, and at most. With fewer, round trips take most of the time."""
MAX_GROWTH = 2.0
"""How many times larger or smaller the next chunk is, at most."""


FEW = 50
"""So many orphans at most are matched in the transaction that selects them."""


@dataclass(slots=True)
class SliceResult:
    """The match results of a slice, the number of its orphans that were closed meanwhile, and the unreadable ones."""

    matches: list[OrphanMatch] = field(default_factory=list)
    closed: int = 0
    unreadable: list[str] = field(default_factory=list)


class _NotAtOnceError(Exception):
    """Orphans cannot be matched in the transaction that selects them."""


def match_at_once(
    tx: Transaction, began: float, parts: Sequence[Part], *, of_any_age: bool
) -> list[SliceResult] | None:
    """Match few orphans, part by part, in the transaction that has selected them: most of their time is round trips.

    Return None if they are not few, the transaction is not young any more, an adopter's rule has to compute keys, which
    may take any time, or a statement fails. Then they are read as any others.

    Args:
        tx: The reading transaction.
        began: When it began, in seconds of the monotonic clock.
        parts: The orphans; their ids are not removed.
        of_any_age: True to read those too that a prune has removed as expired.
    """
    size = sum(part.size for part in parts)
    if size > min(FEW, tx.limits.slice_orphans) or any(part.last for part in parts):
        return None

    @contextmanager
    def read_on() -> Iterator[Transaction]:
        if time.monotonic() > began + tx.limits.reading_seconds:
            raise _NotAtOnceError
        yield tx

    slice_results = []
    try:
        for part in parts:
            ids = part.ids
            orphans = _read_orphans(read_on, ids, of_any_age=of_any_age)
            if provider_rules.has_custom_rules() and not all(orphan.keys.is_current for orphan in orphans):
                return None
            matches = match_orphans(read_on, orphans)
            slice_results.append(SliceResult(matches, closed=len(ids) - len(matches)))
    except _NotAtOnceError:
        return None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return None  # the transaction is aborted, and its end rolls it back
    return slice_results


def _read_orphans(reading: Reading, ids: Sequence[str], *, of_any_age: bool) -> list[OrphanRow]:
    return open_orphans.read_of_any_age(reading, ids) if of_any_age else open_orphans.read(reading, ids)


class ChunkReader:
    """Begins the transactions that read orphans chunk by chunk, and adapts the size of the next chunk to their time.

    Attributes:
        connected: The connection.
        timeout_ms: Returns the timeout of a statement.
        is_over: Returns True if no further chunk may begin.
        size: The number of orphans of the next chunk.
    """

    def __init__(self, connected: OpenConnection, timeout_ms: Callable[[], int], is_over: Callable[[], bool]) -> None:
        self.connected = connected
        self.timeout_ms = timeout_ms
        self.is_over = is_over
        self.size = FIRST_CHUNK
        self._longest_seconds = 0.0

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Begin a transaction for the block, and measure it."""
        started_at = time.monotonic()
        with self.connected.reading(self.timeout_ms()) as tx:
            yield tx
        self._longest_seconds = max(self._longest_seconds, time.monotonic() - started_at)

    def adapt(self) -> None:
        """Choose the size of the next chunk by the longest transaction since the last call."""
        aim_seconds = self.connected.limits.reading_seconds
        growth = aim_seconds / max(self._longest_seconds, aim_seconds / MAX_GROWTH)
        self.size = min(max(int(self.size * max(growth, 1 / MAX_GROWTH)), LEAST_CHUNK), MOST_CHUNK)
        self._longest_seconds = 0.0


def match_slice(reader: ChunkReader, ids: Sequence[str], retry: Retry, *, of_any_age: bool) -> SliceResult:
    """Read and match orphans, chunk by chunk; what is not matched at the deadline is left out."""
    slice_result = SliceResult()

    def read(part: Sequence[str]) -> list[OrphanMatch]:
        return match_orphans(reader.reading, _read_orphans(reader.reading, part, of_any_age=of_any_age))

    def is_over() -> bool:
        return bool(slice_result.matches) and reader.is_over()

    start = 0
    while start < len(ids) and not is_over():
        chunk = ids[start : start + reader.size]
        start += len(chunk)
        parts = run_halved(reader.connected, chunk, read, retry=retry, is_of_rows=is_data_error, is_over=is_over)
        for part, result in parts:
            if isinstance(result, RowFailure):
                event_id = str(UUID(part[0]))
                logger.error("orphan %s cannot be read (SQLSTATE %s); it stays open", event_id, sqlstate(result.error))
                slice_result.unreadable.append(event_id)
            else:
                slice_result.matches += result
                slice_result.closed += len(part) - len(result)
        reader.adapt()
    return slice_result
