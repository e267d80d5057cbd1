"""The result of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mailglass_reconcile.rules import humanize, states
from mailglass_reconcile.rules.states import SweepStatus

REASONS = ("unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch")
"""States of orphans that stay open after matching, for a reason other than `unmatched`."""


def format_remaining(orphans: int | None) -> str:
    """Format the number of eligible orphans that stay open; None if they could not be counted."""
    if orphans is None:
        return "what remains could not be counted"
    return humanize.pluralize(orphans, "eligible event remains", "eligible events remain")


@dataclass(slots=True)
class SweepResult:
    """The counts of one sweep; `scanned` is the sum of the eight states below it.

    Attributes:
        scanned: Eligible open orphans when the sweep began, and late arrivals that were checked.
        linked: Linked and committed by this sweep (in a dry run: would be linked).
        linked_unchecked: The part of `linked` whose recipient could not be read: the message id alone decided.
        unmatched: No delivery has any of their ids yet.
        unmatchable: They have no usable id.
        ambiguous: Several deliveries match, their recipient is no longer known, or their raw webhook was not read yet.
        tenant_mismatch: Their id names only deliveries of another tenant.
        recipient_mismatch: Their id names only deliveries of another recipient.
        skipped: The sum of the three causes that follow.
        skipped_limit: The sweep had reached its limit before it had checked or linked them.
        skipped_deadline: The sweep ended before it had checked or linked them.
        skipped_held: Another session has locked or closed them.
        failed: The database refused to read or link them; they stay open.
        remaining: Eligible and still open afterwards; None if it could not be counted.
        published: Messages that Redis accepted; two per link.
        publish_failed: Messages that it did not; none count if no Redis is set up.
        duration_ms: Milliseconds from start to end.
        dry_run: True if nothing was written.
        tenant_id: The tenant that was swept, or None for all.
        status: `ok`; `partial` if some were left unchecked or failed; `failed` if the sweep failed.
    """

    scanned: int = 0
    linked: int = 0
    linked_unchecked: int = 0
    unmatched: int = 0
    unmatchable: int = 0
    ambiguous: int = 0
    tenant_mismatch: int = 0
    recipient_mismatch: int = 0
    skipped: int = 0
    skipped_limit: int = 0
    skipped_deadline: int = 0
    skipped_held: int = 0
    failed: int = 0
    remaining: int | None = 0
    published: int = 0
    publish_failed: int = 0
    duration_ms: int = 0
    dry_run: bool = False
    tenant_id: str | None = None
    status: SweepStatus = "ok"

    def as_dict(self) -> dict[str, int | bool | str | None]:
        """Return the fields by name, as `sweep --json` prints them and the task returns them."""
        return asdict(self)

    @property
    def shown_tenant(self) -> str | None:
        """The tenant argument as logs, results and the history show it."""
        return None if self.tenant_id is None else humanize.sanitize_tenant(self.tenant_id)


def format_line(tenant_id: str | None, status: str, counts: Mapping[str, int], remaining: int | None) -> str:
    """Format a sweep as one line of a log."""
    scope = "all tenants" if tenant_id is None else f"tenant '{tenant_id}'"
    parts = [f"{counts[state]:,} {state}" for state in states.OUTCOMES if state != "linked" and counts[state]]
    parts += (
        [f"{humanize.pluralize(counts['publish_failed'], 'broadcast')} not sent"] if counts["publish_failed"] else []
    )
    parts += [] if status == "ok" else [f"{status}, {format_remaining(remaining)}"]
    scanned, duration = (
        humanize.pluralize(counts["scanned"], "open event"),
        humanize.format_duration_ms(counts["duration_ms"]),
    )
    return "; ".join([f"swept {scope}: linked {counts['linked']:,} of {scanned} in {duration}", *parts])


def format_mismatches(result: SweepResult) -> list[str]:
    """Return a line for each kind of orphans that match only another tenant's or recipient's deliveries."""
    counts = ((result.tenant_mismatch, "tenant's"), (result.recipient_mismatch, "recipient's"))
    return [
        f"{humanize.pluralize(number, 'event matches', 'events match')} only another {owner} deliveries and"
        f" {humanize.verb(number, 'was', 'were')} not linked"
        for number, owner in counts
        if number
    ]
