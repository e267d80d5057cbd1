"""What a sweep reads: its window, slice after slice, each of one moment; it writes nothing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import hint, is_of_data, sqlstate, translated
from mailglass_reconcile.rules.wording import counted
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import eligible, open_orphans, privileges
from mailglass_reconcile.store.database import Transaction, transaction, with_retries
from mailglass_reconcile.store.model import Open
from mailglass_reconcile.sweep import examination, windows
from mailglass_reconcile.sweep.examination import Examined
from mailglass_reconcile.sweep.windows import Part, Window

logger = logging.getLogger(__name__)


class ExaminedSlice(NamedTuple):
    """Some orphans that were examined, and the ids of those that cannot be read."""

    found: list[Examined]
    unreadable: list[str]


class Reader:
    """Reads one sweep's window until its end or the deadline, which may be moved.

    Attributes:
        window: What the survey saw; None before the first slice.
        deadline: The monotonic time at which to stop, in seconds.
        slices: How many slices were read.
    """

    def __init__(
        self,
        settings: Settings,
        tenant_id: str | None,
        bounds: tuple[str | None, str | None],
        deadline: float,
        recent: float | None = None,
    ) -> None:
        """Prepare to read; nothing connects yet. `windows.survey` says the arguments."""
        self.window: Window | None = None
        self.deadline = deadline
        self.slices = 0
        self._settings = settings
        self._tenant_id = tenant_id
        self._bounds = bounds
        self._recent = recent
        self._left: list[Part] | None = None
        self._complaints: Counter[str] = Counter()

    @property
    def at_end(self) -> bool:
        """Whether all of the window has been read."""
        return self._left == []

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    def next_slice(self, connection: sa.Connection) -> ExaminedSlice:
        """Examine the next slice; the first time, survey what there is to do.

        If a row cannot be read, the slice is halved until that row stands alone.
        """
        self.slices += 1
        try:
            # After a recent sweep comes the next one, which is soon enough.
            retries = with_retries if self._recent is None else (lambda action: action())
            _, found, self._left = retries(partial(self._read, connection))
            return ExaminedSlice(found, [])
        except DBAPIError as error:
            if not is_of_data(error):
                raise
        orphans, _, self._left = with_retries(partial(self._read, connection, examined=False))
        return self._halved(connection, orphans)

    def count(self, connection: sa.Connection) -> int | None:
        """Return how many orphans of the window are open now, or None if they cannot be counted."""
        try:
            with self._reading(connection) as tx:
                return eligible.count(tx, self.window.whole) if self.window else None
        except DBAPIError as error:
            logger.warning("cannot count what remains open: %s", translated(error))
            return None

    def linkable_since(self, connection: sa.Connection, pairs: Sequence[tuple[str, str]]) -> str | None:
        """Return since when the oldest of *pairs*, of orphan and delivery, could have been linked."""

        def read() -> str | None:
            with self._reading(connection) as tx:
                return open_orphans.linkable_since(tx, pairs, self._settings.grace_seconds)

        return with_retries(read)

    def log_complaints(self) -> None:
        """Log a line for each way in which key rules failed; a recent sweep leaves that to the full one."""
        if self._recent is not None:
            return
        for complaint, orphans in self._complaints.items():
            logger.error("%s (%s)", complaint, counted(orphans, "orphan"))

    def _reading(self, connection: sa.Connection) -> AbstractContextManager[Transaction]:
        left_ms = max(1_000, int((self.deadline - time.monotonic()) * 1000))
        return transaction(
            connection, self._settings, read_only=True, snapshot=True, probes_only=True, statement_timeout_ms=left_ms
        )

    def _read(
        self, connection: sa.Connection, *, examined: bool = True
    ) -> tuple[list[Open], list[Examined], list[Part]]:
        with self._reading(connection) as tx:
            window, left = self._survey(tx) if self.window is None or self._left is None else (self.window, self._left)
            if not left:
                return [], [], []
            orphans, left = windows.next_orphans(tx, window, left)
            return orphans, self._examine(tx, orphans) if examined else [], left

    def _survey(self, tx: Transaction) -> tuple[Window, list[Part]]:
        marks = examination.marks()
        window = windows.survey(tx, self._settings, *marks, self._tenant_id, self._bounds, self._recent)
        if self.window is None and self._recent is None:
            _warn(tx, window)
        self.window = window
        return window, window.parts

    def _examine(self, tx: Transaction, orphans: Sequence[Open]) -> list[Examined]:
        complaints: list[str] = []
        raw_webhooks = self.window is not None and self.window.survey.raw_webhooks
        found = examination.examine(tx, orphans, raw_webhooks=raw_webhooks, complain=complaints.append)
        self._complaints.update(complaints)
        return found

    def _halved(self, connection: sa.Connection, orphans: Sequence[Open]) -> ExaminedSlice:
        examined = ExaminedSlice([], [])
        waiting = [orphans]
        while waiting and not self.expired():
            part = waiting.pop()
            try:
                with self._reading(connection) as tx:
                    examined.found.extend(self._examine(tx, part))
            except DBAPIError as error:
                if not is_of_data(error):
                    raise
                if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                else:
                    logger.error(
                        "orphan %s cannot be read (SQLSTATE %s); it stays open", part[0].event_id, sqlstate(error)
                    )
                    examined.unreadable.append(part[0].event_id)
        return examined


def _warn(tx: Transaction, window: Window) -> None:
    """Log what an operator should know of the schema before anything is swept."""
    warning = privileges.warning(tx)
    if warning:
        logger.warning("%s", warning)
    if not window.survey.triggers:
        logger.warning(
            hint(
                "the triggers on mailglass_events are missing or disabled, so new orphans are not seen: run"
                " `mailglass-reconcile migrate`, then `mailglass-reconcile prune`"
            )
        )
