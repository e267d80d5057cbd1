"""The rule: which delivery an event belongs to, or why none; sweeps and single decisions use the same function.

The first candidate id that names a delivery of the event's own tenant, with the event's provider or none, decides. If
the event knows a recipient, only that recipient's deliveries remain; if several do, only those with the event's
provider. Then it must be exactly one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mailglass_reconcile.rules import states
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.rules.providers import canonical

MATCHED: Final = "matched"
UNMATCHED: Final = "unmatched"
UNMATCHABLE: Final = "unmatchable"
AMBIGUOUS: Final = "ambiguous"
TENANT_MISMATCH: Final = "tenant_mismatch"
RECIPIENT_MISMATCH: Final = "recipient_mismatch"


class Candidate(NamedTuple):
    """A delivery that carries a candidate id."""

    candidate_id: str
    delivery_id: str
    tenant_id: str
    provider: str | None
    recipient: str

    def has_provider(self, provider: str | None) -> bool:
        """Whether an event of *provider*, in its canonical spelling, can be about this delivery."""
        return self.provider is None or canonical(self.provider) == provider


class Verdict(NamedTuple):
    """What one event links to, or why not: the state, and the delivery if it is `matched`."""

    state: states.Verdict
    delivery_id: str | None = None


def decide(tenant_id: str, wanted: Keys, found: Mapping[str, Sequence[Candidate]]) -> Verdict:
    """Return the verdict on an event.

    Args:
        tenant_id: The event's tenant.
        wanted: Its keys.
        found: The deliveries that carry its candidate ids, by id; of an id that names many, those that decide.
    """
    if not wanted.candidate_ids:
        return Verdict(UNMATCHABLE)
    others = False
    for candidate_id in wanted.candidate_ids:
        carrying = found.get(candidate_id)
        if not carrying:
            continue
        own = []
        for one in carrying:
            if one.has_provider(wanted.provider):
                if one.tenant_id == tenant_id:
                    own.append(one)
                else:
                    others = True
        if own:
            return _choose(wanted, own)
    return Verdict(TENANT_MISMATCH if others else UNMATCHED)


def _choose(wanted: Keys, own: Sequence[Candidate]) -> Verdict:
    if wanted.lost:
        return Verdict(AMBIGUOUS)
    if wanted.recipient is not None:
        recipient = address(wanted.recipient)
        own = [one for one in own if address(one.recipient) == recipient]
        if not own:
            return Verdict(RECIPIENT_MISMATCH)
        if len(own) > 1:
            own = [one for one in own if one.provider is not None]
    return Verdict(MATCHED, own[0].delivery_id) if len(own) == 1 else Verdict(AMBIGUOUS)
