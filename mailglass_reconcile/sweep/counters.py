"""The counters of a sweep: the only place that counts orphans.

They begin with one snapshot: how many orphans the sweep matches, and what it leaves out, by stored state. Each matched
orphan gets exactly one outcome, and what has none at the end is `skipped_deadline`, or `skipped_limit` after a limit.
So the outcomes add up to what was eligible, whatever other sessions do meanwhile, also after an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mailglass_reconcile.linking.link import Batch
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.queries.selection import Group, Selection


class SweepCounters:
    """Counts one sweep's orphans.

    Attributes:
        complete: True if all selected orphans were matched.
        selected: The number of orphans that the sweep matches.
        left_out: The others that were eligible, by group: their stored state is their outcome. (What is `skipped` was
            selected, and counts by the reason.)
        unchecked: The part of the linked whose recipient could not be read.
        closed: The number of orphans that are not open any more.
    """

    def __init__(self, named_groups: int = Limits.named_groups) -> None:
        self.complete = False
        self.selected = self.unchecked = self.closed = 0
        self.left_out: Counter[Group] = Counter()
        self._unreached: Counter[Group] = Counter()
        self._open: Counter[Group] = Counter()
        self._named_groups = named_groups
        self._outcomes: Counter[str] = Counter()

    def start(self, selection: Selection) -> None:
        """Set the orphans to match and those left out."""
        self.left_out, self._unreached = Counter(selection.left_out), Counter(selection.selected)
        self.selected = selection.selected.total()

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

    def add_open(self, groups: Iterable[Group]) -> None:
        """Count by state processed orphans that stay open."""
        for group, orphans in Counter(groups).items():
            is_named = group in self._open or len(self._open) < self._named_groups
            self._open[group if is_named else Group(group.state, None, None)] += orphans

    def add_states(self, states: Iterable[str]) -> None:
        """Count processed orphans that do not match, by their states."""
        self._outcomes.update(states)

    def add(self, outcome: str, orphans: int, *, closed: int = 0, unchecked: int = 0) -> None:
        """Count processed orphans with the same outcome."""
        self._outcomes[outcome] += orphans
        self.closed += closed
        self.unchecked += unchecked

    def add_batch(self, batch: Batch) -> None:
        """Count the outcomes of a batch; orphans that it did not reach in time have none yet."""
        self.add("linked", len(batch.linked), unchecked=sum(not event.checked for event in batch.linked))
        self.add("failed", len(batch.failed))
        self.add("skipped_held", batch.not_claimed + len(batch.closed) - len(batch.linked), closed=len(batch.closed))

    def open_groups(self) -> Counter[Group]:
        """Count by group the orphans that stay open: those left out, those processed, and at a deadline the others."""
        unreached = Counter[Group]() if self.complete else +self._unreached
        return self.left_out + self._open + unreached

    def outcomes(self) -> Counter[str]:
        """Return the number of orphans by outcome as it is now: everything eligible has exactly one."""
        outcomes = Counter(self._outcomes)
        outcomes["skipped_deadline"] += max(0, self.selected - self.processed)
        for group, orphans in self.left_out.items():
            outcomes[str(group.state)] += orphans
        return outcomes
