"""What a sweep leaves open, for the history of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from mailglass_reconcile.sweep.census import Census
from mailglass_reconcile.sweep.examination import Examined
from mailglass_reconcile.sweep.reader import Reader


class Stock:
    """Counts what stays open, if it is a full sweep's, and knows since when a part of it could have been linked."""

    def __init__(self, *, counts: bool) -> None:
        """Begin with nothing; *counts* says whether open orphans are counted by state, tenant and provider."""
        self.linkable_since: str | None = None
        self._counts = counts
        self._census: Census | None = None

    def take(self, connection: sa.Connection, reader: Reader, found: Sequence[Examined], linked: set[str]) -> None:
        """Note what of a slice stays open: all of *found* that is not *linked*."""
        if self._counts and self._census is None and reader.window is not None:
            self._census = Census(reader.window.groups, reader.window.marks.stale)
        if self._census is not None:
            self._census.examined(found, linked)
        left = [
            (one.orphan.event_id, one.verdict.delivery_id)
            for one in found
            if one.verdict.delivery_id and one.orphan.event_id not in linked
        ]
        if left:
            since = reader.linkable_since(connection, left)
            self.linkable_since = min(filter(None, (since, self.linkable_since)), default=None)

    def groups(self) -> list[dict[str, Any]] | None:
        """Return the open orphans by state, tenant and provider, or None if they were not counted."""
        return None if self._census is None else self._census.as_groups()
