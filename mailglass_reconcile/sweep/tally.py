"""The tally of a sweep: the only place that counts orphans.

It begins with a census: how many orphans are eligible, by the state that is stored with each. What the sweep takes up
leaves its group of the census and ends in exactly one outcome, which is `skipped_deadline` until it has another; what
it does not take up counts by its stored state. So the outcomes add up to what was eligible and what arrived late,
also after an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mailglass_reconcile.pubsub import Published
from mailglass_reconcile.rules.matching import MATCHED
from mailglass_reconcile.rules.states import SKIPPED, SweepStatus
from mailglass_reconcile.sweep.link import Batch
from mailglass_reconcile.sweep.result import SweepResult

Census = Mapping[str | None, int]
"""Orphans by stored state; None is what no sweep has checked."""


class Tally:
    """Counts one sweep's orphans and messages.

    Attributes:
        complete: Whether everything was looked at.
        broke_off: Whether a fault has ended the sweep.
        messages: What Redis took of the messages about links, and what it did not.
    """

    def __init__(self, tenant_id: str | None = None, *, dry_run: bool = False) -> None:
        self.complete = False
        self.broke_off = False
        self.duration_ms = 0
        self._tenant_id, self._dry_run = tenant_id, dry_run
        self._census: Counter[str | None] = Counter()
        self._taken_up = 0
        self._of_unknown_state = 0
        self._outcomes: Counter[str] = Counter()
        self.messages = Published()
        self._unchecked = 0
        self._eligible = 0
        self._closed = 0
        self._changed = False

    def begin(self, census: Census) -> None:
        """Take the census: every eligible orphan by its stored state."""
        self._census = Counter({state: orphans for state, orphans in census.items() if orphans})
        self._eligible = self._census.total()

    @property
    def eligible(self) -> int:
        """How many orphans were eligible when the sweep began, and have arrived late since."""
        return self._eligible

    @property
    def judged(self) -> int:
        """How many orphans have an outcome already."""
        return self._outcomes.total()

    @property
    def linked(self) -> int:
        return self._outcomes["linked"]

    @property
    def changed(self) -> bool:
        """Whether the sweep has closed an orphan, or stored a state."""
        return self._changed or self._closed > 0

    def take_up(self, states: Iterable[str | None]) -> None:
        """Take orphans with these stored states out of the census.

        If another sweep has stored other states meanwhile, so that a group is empty, the largest gives way. What was
        stored with no state after the census was taken has arrived late.
        """
        for state, orphans in Counter(states).items():
            self._taken_up += orphans
            known = min(orphans, self._census[state])
            self._census[state] -= known
            for _ in range(orphans - known):
                largest = None if state is None else max(self._census, key=self._census.__getitem__, default=None)
                if largest is not None and self._census[largest]:
                    self._census[largest] -= 1
                else:
                    self._eligible += 1

    def stays_open(self, states: Iterable[str]) -> None:
        """Count orphans that were taken up and judged, and do not match."""
        self._outcomes.update(states)

    def links(self, batch: Batch) -> None:
        """Count what became of a batch; what it did not reach in time has no outcome yet."""
        self._outcomes["linked"] += len(batch.linked)
        self._outcomes["failed"] += len(batch.failed)
        self._outcomes["skipped_held"] += batch.held + batch.settled
        self._closed += len(batch.linked) + batch.settled
        self._unchecked += sum(not one.checked for one in batch.linked)

    def would_link(self, orphans: int, unchecked: int = 0) -> None:
        """Count what a sweep would link that writes nothing."""
        self._outcomes["linked"] += orphans
        self._unchecked += unchecked

    def exceeds_limit(self, orphans: int) -> None:
        """Count orphans that match, beyond the sweep's limit."""
        self._outcomes["skipped_limit"] += orphans

    def was_closed(self, orphans: int) -> None:
        """Take up orphans that another session had closed, so that their stored states are unknown."""
        self._take_up_unknown(orphans)
        self._outcomes["skipped_held"] += orphans
        self._closed += orphans

    def turned_out_closed(self, states: Iterable[str]) -> None:
        """Move orphans that were judged, and turned out to have a `reconciled` event, to what others have closed."""
        for state in states:
            self._closed += 1
            if state != MATCHED:  # what matches has its outcome: beyond the limit, held by another session, …
                self._outcomes[state] -= 1
                self._outcomes["skipped_held"] += 1

    def cannot_be_read(self, orphans: int) -> None:
        self._take_up_unknown(orphans)
        self._outcomes["failed"] += orphans

    def _take_up_unknown(self, orphans: int) -> None:
        self._taken_up += orphans
        self._of_unknown_state += orphans

    def stored(self) -> None:
        """Note that states were stored."""
        self._changed = True

    def result(self) -> SweepResult:
        """Return the counts as they are now: everything eligible has exactly one outcome."""
        outcomes = Counter(self._outcomes)
        outcomes["skipped_deadline"] += self._taken_up - self._outcomes.total()
        left, late = self._left()
        gone = 0
        for state, orphans in left.items():
            if state not in (None, MATCHED):
                outcomes[str(state)] += orphans
            elif self.complete:  # another session has closed them
                outcomes["skipped_held"] += orphans
                gone += orphans
            else:
                outcomes["skipped_deadline"] += orphans
        skipped = sum(outcomes[why] for why in SKIPPED)
        return SweepResult(
            scanned=outcomes.total(),
            linked=outcomes["linked"],
            linked_unchecked=self._unchecked,
            unmatched=outcomes["unmatched"],
            unmatchable=outcomes["unmatchable"],
            ambiguous=outcomes["ambiguous"],
            tenant_mismatch=outcomes["tenant_mismatch"],
            recipient_mismatch=outcomes["recipient_mismatch"],
            skipped=skipped,
            skipped_limit=outcomes["skipped_limit"],
            skipped_deadline=outcomes["skipped_deadline"],
            skipped_held=outcomes["skipped_held"],
            failed=outcomes["failed"],
            remaining=max(0, self._eligible + late - self._closed - gone),
            published=self.messages.published,
            publish_failed=self.messages.failed,
            duration_ms=self.duration_ms,
            dry_run=self._dry_run,
            tenant_id=self._tenant_id,
            status=self._status(outcomes["failed"]),
        )

    def _left(self) -> tuple[Counter[str | None], int]:
        """Return what was not taken up, by stored state, and how many of unknown state arrived late.

        The largest groups give way to those of unknown state.
        """
        left, unknown = Counter(self._census), self._of_unknown_state
        for state, orphans in self._census.most_common():
            given = min(orphans, unknown)
            left[state] -= given
            unknown -= given
        return left, unknown

    def _status(self, failed: int) -> SweepStatus:
        if self.broke_off:
            return "failed"
        return "ok" if self.complete and not failed else "partial"
