"""What a sweep came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

STATES = (
    "linked",
    "unmatched",
    "unmatchable",
    "ambiguous",
    "tenant_mismatch",
    "recipient_mismatch",
    "skipped",
    "failed",
)


@dataclass(slots=True)
class SweepResult:
    """The counts of one sweep; `scanned` is the sum of the eight states below it.

    Attributes:
        scanned: Eligible open orphans when the sweep began.
        linked: Linked and committed by this sweep (in a dry run: what it would link).
        unmatched: No delivery has any of their ids, yet.
        unmatchable: They have no usable id.
        ambiguous: Several deliveries, and no way to choose.
        tenant_mismatch: Their id names deliveries of another tenant only.
        recipient_mismatch: Their id names deliveries of another recipient only.
        skipped: Matched, but held or settled by somebody else, or beyond the limit or the deadline.
        failed: Matched, but the database refused the link; they stay open.
        remaining: Eligible and still open afterwards.
        published: Messages that Redis took; two per link.
        publish_failed: Messages that it did not.
        duration_ms: Milliseconds from beginning to end.
        dry_run: Whether nothing was written.
        tenant_id: The tenant that was swept, or None for all.
        status: `ok`; `partial` where the deadline came or some failed; `failed` where the sweep broke off.
    """

    scanned: int = 0
    linked: int = 0
    unmatched: int = 0
    unmatchable: int = 0
    ambiguous: int = 0
    tenant_mismatch: int = 0
    recipient_mismatch: int = 0
    skipped: int = 0
    failed: int = 0
    remaining: int = 0
    published: int = 0
    publish_failed: int = 0
    duration_ms: int = 0
    dry_run: bool = False
    tenant_id: str | None = None
    status: str = "ok"

    def as_dict(self) -> dict[str, int | bool | str | None]:
        """Return the fields by name, as `sweep --json` prints them and the task returns them."""
        return asdict(self)

    @property
    def seen(self) -> int:
        """How many orphans have been given a state so far."""
        return sum(getattr(self, state) for state in STATES)

    def count(self, found: Mapping[str, int]) -> None:
        """Add orphans by the state that the match found; a matched one is skipped until it is linked."""
        for state, orphans in found.items():
            name = "skipped" if state == "matched" else state
            setattr(self, name, getattr(self, name) + orphans)

    def add(self, linked: int, failed: int = 0, published: int = 0, publish_failed: int = 0) -> None:
        """Add what became of a batch of matched orphans, and of its messages."""
        self.linked += linked
        self.failed += failed
        self.skipped -= linked + failed
        self.published += published
        self.publish_failed += publish_failed

    def settle(self, eligible: int) -> None:
        """Close the books: what was eligible and never looked at was skipped."""
        self.skipped += max(0, eligible - self.seen)
        self.scanned = self.seen
        if self.status == "ok" and self.failed:
            self.status = "partial"
