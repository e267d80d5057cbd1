"""What one sweep looks at, and in which order.

What is new comes first, then the rest from where the last full sweep stopped; what the database has refused before is
last, so that it holds nothing up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import SchemaOutdatedError, hint, is_of_data, sqlstate
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import counted, shown_tenant
from mailglass_reconcile.store import ledger, open_orphans, privileges, repair, windows
from mailglass_reconcile.store.database import Connected, Transaction, with_retries
from mailglass_reconcile.store.open_orphans import FIRST, LAST, Place
from mailglass_reconcile.store.windows import Group, Outdated, Slice, Survey
from mailglass_reconcile.sweep.judge import Judged, judge

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Position(NamedTuple):
    """How far full sweeps that could not finish have come.

    Attributes:
        covered: Everything that arrived until here was looked at since `since`, or will be before that ends.
        resume: Where to continue in that part; None is its beginning.
        since: When the first of these sweeps began, in UTC.
    """

    covered: Place
    resume: Place | None
    since: str

    @classmethod
    def of_json(cls, kept: dict[str, Any]) -> Position:
        """Return what the run history has kept."""
        resume = kept.get("resume")
        return cls(Place(*kept["covered"]), Place(*resume) if resume else None, kept["since"])


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a window: what is `fresh`, the `rest`, or what was `refused`; about how many orphans are open in it."""

    slice: Slice
    which: Literal["fresh", "rest", "refused"]
    orphans: int

    def after(self, place: Place) -> Part:
        """Return what of it comes after a place."""
        return replace(self, slice=replace(self.slice, after=place))


@dataclass(slots=True)
class Window:
    """What is eligible, as a sweep saw it when it began.

    Attributes:
        survey: That moment, and the state of the schema.
        whole: All of it, as one slice.
        position: Where the last full sweep stopped, if it did not finish.
        groups: How many orphans are open in it, by rule, tenant and provider.
        outdated: Which stored keys must be computed again.
        parts: What must be looked at, in order.
        emptied: Whether the ledger was emptied.
    """

    survey: Survey | None
    whole: Slice
    position: Position | None
    groups: list[Group]
    outdated: Outdated
    parts: Sequence[Part] = ()
    emptied: bool = False

    @property
    def eligible(self) -> int:
        """How many orphans are open in it."""
        return sum(group.orphans for group in self.groups)

    @property
    def unmatchable(self) -> int:
        """How many of them have current keys without any usable id: they need no look."""
        return sum(group.unmatchable for group in self.groups if group.rule not in self.outdated.marks)


def open_window(
    tx: Transaction,
    tenant_id: str | None = None,
    bounds: tuple[str | None, str | None] = (None, None),
    ages: Sequence[tuple[float, float]] | None = None,
    full: bool = False,
) -> Window:
    """Return what a sweep will look at, of one tenant or, with None, of all.

    That is what is eligible; with *bounds*, of what arrived after the first time and until the second only, both as
    Postgres writes them; or with *ages*, as `windows.survey` takes them, what is of these ages, even in its grace.
    A *full* sweep continues where the last one stopped if that did not finish.

    Raises:
        SchemaOutdatedError: The database lacks what this version needs.
    """
    shown = tenant_id and shown_tenant(tenant_id)
    seen = windows.survey(tx, ages=ages, bounds=bounds, full=full, counted=True, tenant_id=shown)
    if not seen.indexed:
        missing = "the index mailglass_deliveries_reconcile_idx is missing or incomplete"
        raise SchemaOutdatedError(f"{missing}: run `mailglass-reconcile migrate`")
    whole, position = seen.whole(tenant_id), Position.of_json(seen.position) if seen.position else None
    groups = windows.groups(tx, whole, _outdated(), position.covered if position else FIRST, seen.few)
    return Window(seen, whole, position, groups, _outdated(groups), _parts(whole, groups, position), seen.emptied)


def _outdated(groups: Sequence[Group] = ()) -> Outdated:
    """Return which of the keys that *groups* have this process would compute again."""
    marks = {group.rule for group in groups if group.rule and providers.is_outdated(group.rule)}
    computes = bool(marks) or any(group.rule is None or group.superseded for group in groups)
    return Outdated(marks, providers.rule_of(providers.ANY_PROVIDER).mark, providers.known(), computes)


def _parts(whole: Slice, groups: Sequence[Group], position: Position | None) -> list[Part]:
    orphans = fresh = refused = 0
    for group in groups:
        if group.refused:
            refused += group.orphans
        else:
            orphans += group.orphans
            fresh += group.fresh
    parts = [Part(whole, "fresh", orphans)] if position is None else _resumed(whole, position, orphans, fresh)
    parts.append(Part(replace(whole, refused=True), "refused", refused))
    return list(filter(attrgetter("orphans"), parts))


def _resumed(whole: Slice, position: Position, orphans: int, fresh: int) -> list[Part]:
    """Return the parts of a window that earlier sweeps have covered in part."""
    parts = [Part(replace(whole, after=position.covered), "fresh", fresh)]
    resume = position.resume or whole.after
    parts += [Part(replace(whole, after=resume, until=position.covered), "rest", orphans - fresh)]
    if position.resume:
        parts += [Part(replace(whole, until=position.resume), "rest", orphans - fresh)]
    return parts


def of_events(orphans: int) -> Window:
    """Return the window of a sweep over given events."""
    group = Group(None, False, None, None, False, orphans, 0, 0, 0)
    return Window(None, Slice(FIRST, LAST, ()), None, [group], Outdated((), "", ()))


@dataclass(slots=True)
class Found:
    """Some orphans that were judged; how many were closed by then; and those that cannot be read."""

    judged: list[Judged] = field(default_factory=list)
    closed: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Scan:
    """What one sweep reads, slice by slice, until its deadline: each slice in a snapshot of its own.

    Attributes:
        deadline: When it ends, on this process's monotonic clock.
        writes: Whether what an emptied ledger has left behind is removed.
        tenant_id: As for `open_window`; so are `bounds`, `ages` and `full`.
        event_ids: These orphans only, even in their grace.
        window: What is eligible; None before it is known.
        complete: Whether everything was looked at.
    """

    deadline: float
    writes: bool
    tenant_id: str | None
    bounds: tuple[str | None, str | None]
    ages: Sequence[tuple[float, float]] | None
    full: bool
    event_ids: Sequence[str] | None
    window: Window | None = None
    complete: bool = False
    _parts: deque[Part] = field(default_factory=deque)
    _reached: Place | None = None

    def ids(self, connected: Connected, size: int) -> Iterator[Sequence[str]]:
        """Yield the ids of what to judge, *size* at a time, part by part of the window."""
        if self.event_ids is not None:
            self.window = of_events(len(self.event_ids))
            yield from (self.event_ids[n : n + size] for n in range(0, len(self.event_ids), size))
            return
        packed: bytes | None = self._retried(lambda: self._next_ids(connected, first=True))
        if self.window and self.window.emptied and self.writes:
            _close_emptied(connected)
            packed = self._retried(lambda: self._next_ids(connected, first=True))
        while self._parts:
            if packed is None:
                packed = self._retried(lambda: self._next_ids(connected))
            self._reached = None
            yield from windows.unpacked(packed, size)
            part = self._parts.popleft()
            if len(packed) == 16 * windows.MOST_IDS and self._reached:
                self._parts.appendleft(part.after(self._reached))
            packed = None

    def _next_ids(self, connected: Connected, *, first: bool = False) -> bytes:
        """Return the ids of the next part; with *first*, survey the window before, in the same snapshot."""
        with connected.reading(self.left_ms()) as tx:
            if first:
                opened = open_window(tx, self.tenant_id, self.bounds, self.ages, full=self.full)
                if self.window is None and opened.survey and self.ages is None:
                    _warn(opened.survey, tx.schema)
                self.window, self._parts = opened, deque(opened.parts)
            if not self._parts or self.window is None:
                return b""
            return windows.ids_to_judge(tx, self._parts[0].slice, self.window.outdated, self._parts[0].orphans)

    def judge(self, connected: Connected, ids: Sequence[str]) -> Found:
        """Judge orphans in one snapshot. If a row cannot be read, they are halved until that row stands alone."""
        found = Found()
        waiting = [ids]
        while waiting and not (found.judged and time.monotonic() >= self.deadline):
            part = waiting.pop()
            try:
                judged = self._retried(partial(self._judged, connected, part))
            except DBAPIError as error:
                waiting += _after_failure(connected, found, part, error)
            else:
                found.judged.extend(judged)
                found.closed += len(part) - len(judged)
        if found.judged:
            self._reached = found.judged[-1].orphan.place
        return found

    def _judged(self, connected: Connected, ids: Sequence[str]) -> list[Judged]:
        with connected.reading(self.left_ms()) as tx:
            if self.window and self.window.emptied:  # a dry run closes nothing
                ids = list(ledger.types_of(tx, ids))
            return judge(tx, open_orphans.read(tx, ids))

    def _retried(self, action: Callable[[], T]) -> T:
        """Return what *action* returns; after a recent sweep comes the next one, which is soon enough."""
        return with_retries(action) if self.ages is None else action()

    def left_ms(self) -> int:
        """Return how many milliseconds a statement may take: those that are left, or a second."""
        return max(1_000, int((self.deadline - time.monotonic()) * 1000))

    @property
    def unseen(self) -> Slice | None:
        """What is new and was not looked at, if anything."""
        if not self._parts or self._parts[0].which != "fresh":
            return None
        return (self._parts[0] if self._reached is None else self._parts[0].after(self._reached)).slice

    @property
    def next_position(self) -> dict[str, Any] | None:
        """Where the next full sweep continues if this one is not complete; None if at the beginning."""
        if not self.full or self.window is None or self.window.survey is None:
            return None
        if not self._parts or self._parts[0].which == "refused":
            return None
        before, stopped_at = self.window.position, self._reached or self._parts[0].slice.after
        since = before.since if before else self.window.survey.now
        if self._parts[0].which == "fresh":
            return Position(stopped_at, before.resume if before else None, since)._asdict()
        return Position(self.window.whole.until, stopped_at, since)._asdict()


def _after_failure(connected: Connected, found: Found, part: Sequence[str], error: DBAPIError) -> list[Sequence[str]]:
    """Return the halves of what cannot be read, or note the row that stands alone."""
    privileges.require_rights(connected, error)
    if not is_of_data(error):
        raise error
    if len(part) > 1:
        middle = len(part) // 2
        return [part[middle:], part[:middle]]
    event_id = str(UUID(part[0]))
    logger.error("orphan %s cannot be read (SQLSTATE %s); it stays open", event_id, sqlstate(error))
    found.unreadable.append(event_id)
    return []


def _close_emptied(connected: Connected) -> None:
    """Close what an emptied ledger has left behind."""
    removed = repair.remove_settled(connected, connected.settings.batch_size)
    repair.remove_stray_ids(connected, connected.settings.batch_size)
    closed = counted(removed, "open orphan was", "open orphans were")
    logger.warning("mailglass_events was emptied: %s closed", closed)


def _warn(survey: Survey, schema: str) -> None:
    """Log what an operator should know of the schema before anything is swept."""
    if survey.creators:
        logger.warning("%s", privileges.warning(survey.creators, schema))
    if not survey.triggers:
        found = "the triggers on mailglass_events are missing or disabled, so new orphans are not seen"
        logger.warning(hint(f"{found}: run `mailglass-reconcile migrate`, then `mailglass-reconcile prune`"))
