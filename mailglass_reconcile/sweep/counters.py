"""The counters of a sweep: the only place that counts orphans.

They begin with one snapshot: how many orphans the sweep matches, and what it leaves out, by stored state. Each matched
orphan gets exactly one outcome, and what has none at the end is `skipped_deadline`. So the outcomes add up to what was
eligible, whatever other sessions do meanwhile, also after an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mailglass_reconcile.pubsub import Published
from mailglass_reconcile.rules.states import SKIPPED, SweepStatus
from mailglass_reconcile.store.window import NAMED_GROUPS, Choice, Group
from mailglass_reconcile.sweep.link import Batch
from mailglass_reconcile.sweep.result import SweepResult


class SweepCounters:
    """Counts one sweep's orphans and messages.

    Attributes:
        complete: True if all chosen orphans were matched.
        broke_off: True if an error ended the sweep.
        duration_ms: Milliseconds from start to end.
        chosen: The number of orphans that the sweep matches.
        messages: The numbers of messages that Redis accepted and did not accept.
    """

    def __init__(self, tenant_id: str | None = None, *, dry_run: bool = False) -> None:
        self.complete = False
        self.broke_off = False
        self.duration_ms = 0
        self.chosen = 0
        self._tenant_id, self._dry_run = tenant_id, dry_run
        self._left_out: Counter[Group] = Counter()
        self._unreached: Counter[Group] = Counter()
        self._open: Counter[Group] = Counter()
        self._outcomes: Counter[str] = Counter()
        self.messages = Published()
        self._unchecked = 0
        self._closed = 0

    def start(self, choice: Choice) -> None:
        """Set the orphans to match and those left out."""
        self._left_out, self._unreached = Counter(choice.left_out), Counter(choice.chosen)
        self.chosen = choice.chosen.total()

    @property
    def eligible(self) -> int:
        """Orphans that were eligible in the first snapshot."""
        return self._left_out.total() + self.chosen

    @property
    def processed(self) -> int:
        """Orphans that have an outcome already."""
        return self._outcomes.total()

    @property
    def linked(self) -> int:
        return self._outcomes["linked"]

    @property
    def misses_unseen(self) -> bool:
        """True if this sweep did not match an orphan that no sweep has matched."""
        return not self.complete and any(group.state is None and self._unreached[group] for group in self._unreached)

    def mark_processed(self, groups: Iterable[Group]) -> None:
        """Count orphans as read, by their stored states."""
        for group, orphans in Counter(groups).items():
            self._unreached[group if self._unreached[group] > 0 else Group(group.state, None, None)] -= orphans

    def exclude(self, orphans: int) -> None:
        """Remove orphans that do not pass the filter, which needs their keys."""
        self.chosen -= orphans

    def add_open(self, groups: Iterable[Group]) -> None:
        """Count by state processed orphans that stay open."""
        for group, orphans in Counter(groups).items():
            is_named = group in self._open or len(self._open) < NAMED_GROUPS
            self._open[group if is_named else Group(group.state, None, None)] += orphans

    def add_mismatches(self, states: Iterable[str]) -> None:
        """Count processed orphans that do not match, by their states."""
        self._outcomes.update(states)

    def add_batch(self, batch: Batch) -> None:
        """Count the outcomes of a batch; orphans that it did not reach in time have none yet."""
        self._outcomes["linked"] += len(batch.linked)
        self._outcomes["failed"] += len(batch.failed)
        self._outcomes["skipped_held"] += batch.held + len(batch.closed) - len(batch.linked)
        self._closed += len(batch.closed)
        self._unchecked += sum(not event.checked for event in batch.linked)

    def add_would_link(self, orphans: int, unchecked: int = 0) -> None:
        """Count orphans that a dry run would link."""
        self._outcomes["linked"] += orphans
        self._unchecked += unchecked

    def add_over_limit(self, orphans: int) -> None:
        """Count orphans that match, beyond the sweep's limit."""
        self._outcomes["skipped_limit"] += orphans

    def add_closed_elsewhere(self, orphans: int) -> None:
        """Count orphans that another session closed before they were read."""
        self._outcomes["skipped_held"] += orphans
        self._closed += orphans

    def add_unreadable(self, orphans: int) -> None:
        """Count orphans that the database refuses to read."""
        self._outcomes["failed"] += orphans

    def open_groups(self) -> Counter[Group]:
        """Count by group the orphans that stay open: those left out, those processed, and at a deadline the others."""
        unreached = Counter[Group]() if self.complete else +self._unreached
        return self._left_out + self._open + unreached

    def result(self) -> SweepResult:
        """Return the counts as they are now: everything eligible has exactly one outcome."""
        outcomes = Counter(self._outcomes)
        outcomes["skipped_deadline"] += max(0, self.chosen - self.processed)
        for group, orphans in self._left_out.items():
            outcomes[str(group.state)] += orphans
        return SweepResult(
            scanned=outcomes.total(),
            linked=outcomes["linked"],
            linked_unchecked=self._unchecked,
            unmatched=outcomes["unmatched"],
            unmatchable=outcomes["unmatchable"],
            ambiguous=outcomes["ambiguous"],
            tenant_mismatch=outcomes["tenant_mismatch"],
            recipient_mismatch=outcomes["recipient_mismatch"],
            skipped=sum(outcomes[reason] for reason in SKIPPED),
            skipped_limit=outcomes["skipped_limit"],
            skipped_deadline=outcomes["skipped_deadline"],
            skipped_held=outcomes["skipped_held"],
            failed=outcomes["failed"],
            remaining=outcomes.total() - self._closed,
            published=self.messages.published,
            publish_failed=self.messages.failed,
            duration_ms=self.duration_ms,
            dry_run=self._dry_run,
            tenant_id=self._tenant_id,
            status=self._status(outcomes["failed"]),
        )

    def _status(self, failed: int) -> SweepStatus:
        if self.broke_off:
            return "failed"
        return "ok" if self.complete and not failed else "partial"
