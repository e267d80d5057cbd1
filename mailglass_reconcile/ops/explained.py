"""What `explain` knows of one event."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mailglass_reconcile.rules.states import EventState, Verdict


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an event is linked or not; times are in ISO 8601, UTC.

    Attributes:
        event_id: The event.
        state: One of `states.EVENT_STATES`.
        sentence: The same for a person.
        tenant_id: The event's tenant.
        delivery_id: What it is, or would be, linked to.
        candidate_ids: The ids tried, in order; known while it is not linked.
        named: The deliveries that they name; `own` if of the event's tenant, `fitting` if with its provider or none,
            `addressed` if to its recipient or none is known.
        type: The event's type.
        provider: The event's provider, in its canonical spelling.
        arrived_at: When the ledger took it.
        rule: The provider's rule, `provider/version`.
        reads: The places that the rule reads, in order: `path`, and `holds`, the JSON type of what is there, or null.
        tried: For each candidate id, in order, its `id`, the place `read_from` which it comes, and how many
            `deliveries` of it were looked at.
        recipient_known: Whether it is known which recipient the event is about.
        verdict: What a sweep would find if it looked now: for those in their grace, and for expired ones.
        remedy: What would have to be different for it to be linked.
        eligible_at: When the full sweep looks at it first; it does so in each run until `expires_at`.
        expires_at: When it becomes too old.
        refused: How often the database has refused to read or link it.
        linked_at: When it was linked.
        linked_during: The runs that were linking then, at most three: `kind`, `origin`, `started_at`. Empty if a
            writer of this package linked it, or if the run was folded into the totals.
        reconciled_by: The `reconciled` event that linked or settled it.
    """

    event_id: str
    state: EventState
    sentence: str
    tenant_id: str | None = None
    delivery_id: str | None = None
    candidate_ids: tuple[str, ...] = ()
    named: tuple[dict[str, Any], ...] = ()
    type: str | None = None
    provider: str | None = None
    arrived_at: str | None = None
    rule: str | None = None
    reads: tuple[dict[str, str | None], ...] = ()
    tried: tuple[dict[str, Any], ...] = ()
    recipient_known: bool | None = None
    verdict: Verdict | None = None
    remedy: str | None = None
    eligible_at: str | None = None
    expires_at: str | None = None
    refused: int = 0
    linked_at: str | None = None
    linked_during: tuple[dict[str, str], ...] = ()
    reconciled_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `explain --json` prints them."""
        return asdict(self)
