"""The state of one sweep: its arguments, its deadline, its counters."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.runs import Kind, Origin
from mailglass_reconcile.store.window import EVERYTHING, OrphanFilter, Window
from mailglass_reconcile.sweep.counters import SweepCounters
from mailglass_reconcile.sweep.deadline import Deadline
from mailglass_reconcile.sweep.result import SweepResult


@dataclass(slots=True, eq=False, kw_only=True)
class SweepRun:
    """A run over open orphans, which has not begun yet.

    Attributes:
        database: The database, and the settings: grace, maximum age, batch size and deadline.
        publisher: Gets a message for both channels of each committed link; a dry run needs none.
        kind: The kind of run.
        tenant_id: Sweep this tenant's orphans only.
        limit: Link at most this many.
        dry_run: Match in read-only transactions; write and publish nothing.
        bounds: Sweep only what arrived after the first time and until the second, in UTC.
        only: Sweep only the orphans that pass this filter.
        event_ids: Sweep these orphans, of any age: together with those that pass the filter, if there is one.
        ages: The oldest and the youngest age in seconds; None is from the grace to the maximum age.
        seconds: A time limit, if it ends before the deadline of the settings.
        range_of: The run of the sweep that was divided, if this one is a range of it.
        origin: The origin of the run, for the history.
        deadline: The end of the run at the latest.
        started: The start of the run, in seconds of the monotonic clock.
        counters: The counts so far.
        window: The window of the sweep; None until it is read.
        unseen_since: When the grace of the oldest orphan ended that no sweep had checked; None without one.
        has_jobs: True if a linked event has jobs for handlers.
        in_batch: True while a batch is linked and not counted yet: only then it is unknown what was committed.
        error: The error that ended the sweep early.
        linkable_since: When the oldest orphan that stays open became linkable; None without one.
        failures: The number of orphans that each failed key rule has left without keys, by the rule's error.
    """

    database: Database = field(kw_only=False)
    publisher: Publisher | None = field(kw_only=False)
    kind: Kind = "full"
    tenant_id: str | None = None
    limit: int | None = None
    dry_run: bool = False
    bounds: tuple[str | None, str | None] = (None, None)
    only: OrphanFilter = EVERYTHING
    event_ids: Sequence[str] = ()
    ages: tuple[float, float] | None = None
    seconds: float = math.inf
    range_of: int | None = None
    origin: Origin = "python"
    started: float = field(init=False, default_factory=time.monotonic)
    counters: SweepCounters = field(init=False)
    unseen_since: str | None = field(init=False, default=None)
    window: Window | None = field(init=False, default=None)
    has_jobs: bool = field(init=False, default=False)
    in_batch: bool = field(init=False, default=False)
    error: BaseException | None = field(init=False, default=None)
    linkable_since: str | None = field(init=False, default=None)
    failures: Counter[str] = field(init=False, default_factory=Counter)
    deadline: Deadline = field(init=False)

    def __post_init__(self) -> None:
        """Begin to count: the deadline and the duration are those of this moment."""
        self.deadline = Deadline(min(self.seconds, self.database.settings.sweep_seconds))
        self.counters = SweepCounters(self.tenant_id, dry_run=self.dry_run)

    @property
    def result(self) -> SweepResult:
        """The counts as they are now."""
        return self.counters.result()

    @property
    def has_started(self) -> bool:
        """True if the eligible orphans are known."""
        return self.window is not None

    @property
    def is_recent(self) -> bool:
        """True for a recent sweep, which leaves log lines to the full sweep."""
        return self.kind == "recent"

    @property
    def is_out_of_time(self) -> bool:
        """True if the deadline explains that a statement was cancelled."""
        return self.deadline.remaining_seconds <= 1.0

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self.deadline.stop()

    def update_lag(self, since: str | None) -> None:
        """Keep the earliest time since which an open orphan could have been linked."""
        self.linkable_since = min(filter(None, (since, self.linkable_since)), default=None)
