"""An orphan of a page, and which ones to list."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from mailglass_reconcile.rules import keys, providers, states
from mailglass_reconcile.sweep import match

WAITING: Final = "waiting"
EXPIRED: Final = "expired"
NAMING = (match.MATCHED, match.AMBIGUOUS, match.TENANT_MISMATCH, match.RECIPIENT_MISMATCH)
"""States of orphans with an id that names a delivery, of whatever tenant."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which orphans to list; None is all that are not expired.

    Attributes:
        state: One of `states.OPEN_STATES`; `expired` lists those of the ledger, tenant by tenant.
        tenant_id: The tenant.
        provider: The provider, in any spelling.
        type: The event's type.
        older: At least this many seconds since it arrived.
        newer: At most this many.
        message_id: A message id, in any spelling, among its candidate ids.
    """

    state: str | None = None
    tenant_id: str | None = None
    provider: str | None = None
    type: str | None = None
    older: float | None = None
    newer: float | None = None
    message_id: str | None = None

    def ids(self) -> frozenset[str] | None:
        """Return the candidate ids of which an orphan must have one, or None."""
        return None if self.message_id is None else spellings(self.message_id)

    def accept(self, one: Listed, ids: frozenset[str] | None) -> bool:
        """Whether an orphan passes, with its state and its keys as they are now; *ids* are those of `ids()`."""
        return (
            self.state in (None, one.state)
            and self.type in (None, one.type)
            and (self.provider is None or one.provider == providers.canonical(self.provider))
            and (ids is None or not ids.isdisjoint(one.candidate_ids))
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """An orphan of a page; `arrived_at` in ISO 8601, UTC; `delivery_id` is what the next sweep would link it to."""

    event_id: str
    tenant_id: str
    provider: str | None
    type: str | None
    state: states.OpenState
    arrived_at: str
    candidate_ids: tuple[str, ...]
    delivery_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as `orphans --json` prints them."""
        return asdict(self)


def spellings(message_id: str) -> frozenset[str]:
    """Return the candidate ids that some provider's rule makes of a message id, or of what its webhook calls so."""
    known = (keys.keys_of_text(provider, message_id, None) for provider in providers.rules())
    return frozenset(id_ for its in known for id_ in its.candidate_ids)
