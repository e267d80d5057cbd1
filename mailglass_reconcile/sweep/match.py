"""The rule: which delivery an event belongs to, or why none. Nothing is locked or written.

The first candidate id that names a delivery of the event's own tenant, with the event's provider or none, decides. If
the event knows a recipient, only that recipient's deliveries remain; if several do, only those with the event's
provider; and then exactly one. A sweep and a decision for one event use the same function.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mailglass_reconcile.rules import states
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.rules.providers import canonical, spellings
from mailglass_reconcile.store import deliveries
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.deliveries import FEW, Question
from mailglass_reconcile.store.model import Named

MATCHED: Final = "matched"
UNMATCHED: Final = "unmatched"
UNMATCHABLE: Final = "unmatchable"
AMBIGUOUS: Final = "ambiguous"
TENANT_MISMATCH: Final = "tenant_mismatch"
RECIPIENT_MISMATCH: Final = "recipient_mismatch"


class Event(NamedTuple):
    """An event to be matched."""

    event_id: str
    tenant_id: str
    keys: Keys


class Verdict(NamedTuple):
    """What one event links to, or why not: the state, and the delivery if it is `matched`."""

    state: states.Verdict
    delivery_id: str | None = None


class Decision(NamedTuple):
    """A verdict, and the deliveries that the event's ids name; of an id that names many, those that decide."""

    state: states.Verdict
    delivery_id: str | None
    named: tuple[Named, ...]


def match(tx: Transaction, events: Sequence[Event]) -> list[Verdict]:
    """Return the verdict on each of *events*, in their order; every distinct id is looked up once."""
    found = _look_up(tx, events)
    return [_rule(event.tenant_id, event.keys, found.of(event)) for event in events]


def decide(tx: Transaction, tenant_id: str, wanted: Keys) -> Decision:
    """Decide for one event, by the rule of `match`, and say which deliveries its ids name."""
    event = Event("", tenant_id, wanted)
    named = _look_up(tx, [event]).of(event)
    verdict = _rule(tenant_id, wanted, named)
    return Decision(*verdict, tuple(d for candidate in wanted.candidate_ids for d in named.get(candidate, ())))


class _LookedUp(NamedTuple):
    """Deliveries by candidate id; those of ids that name many, by question."""

    narrow: Mapping[str, Sequence[Named]]
    wide_ids: frozenset[str]
    wide: Mapping[Question, Sequence[Named]]

    def of(self, event: Event) -> Mapping[str, Sequence[Named]]:
        """Return the deliveries that decide for *event*, by candidate id."""
        if self.wide_ids.isdisjoint(event.keys.candidate_ids):
            return self.narrow
        return {**self.narrow, **{q.candidate_id: self.wide[q] for q in _questions(event, self.wide_ids)}}


def _look_up(tx: Transaction, events: Sequence[Event]) -> _LookedUp:
    narrow: dict[str, list[Named]] = defaultdict(list)
    for delivery in deliveries.of_ids(tx, {id_ for event in events for id_ in event.keys.candidate_ids}):
        narrow[delivery.candidate_id].append(delivery)
    wide_ids = frozenset(id_ for id_, found in narrow.items() if len(found) > FEW)
    wide: dict[Question, dict[str, Named]] = {q: {} for event in events for q in _questions(event, wide_ids)}
    if wide:
        questions = list(wide)
        for number, delivery in deliveries.of_wide_ids(tx, questions):
            wide[questions[number]][delivery.delivery_id] = delivery
    return _LookedUp(narrow, wide_ids, {question: tuple(found.values()) for question, found in wide.items()})


def _questions(event: Event, wide_ids: frozenset[str]) -> list[Question]:
    if wide_ids.isdisjoint(event.keys.candidate_ids):
        return []
    recipient = address(event.keys.recipient) if event.keys.recipient else None
    known = spellings(event.keys.provider or "")
    return [Question(id_, event.tenant_id, known, recipient) for id_ in event.keys.candidate_ids if id_ in wide_ids]


def _rule(tenant_id: str, wanted: Keys, named: Mapping[str, Sequence[Named]]) -> Verdict:
    if not wanted.candidate_ids:
        return Verdict(UNMATCHABLE)
    others = False
    for candidate in wanted.candidate_ids:
        fitting = [
            d for d in named.get(candidate, ()) if d.provider is None or canonical(d.provider) == wanted.provider
        ]
        own = [d for d in fitting if d.tenant_id == tenant_id]
        if own:
            return _choose(wanted, own)
        others = others or bool(fitting)
    return Verdict(TENANT_MISMATCH if others else UNMATCHED)


def _choose(wanted: Keys, own: Sequence[Named]) -> Verdict:
    if wanted.lost:
        return Verdict(AMBIGUOUS)
    if wanted.recipient is not None:
        recipient = address(wanted.recipient)
        own = [d for d in own if address(d.recipient) == recipient]
        if not own:
            return Verdict(RECIPIENT_MISMATCH)
    if len(own) > 1:
        own = [d for d in own if d.provider is not None]
    return Verdict(MATCHED, own[0].delivery_id) if len(own) == 1 else Verdict(AMBIGUOUS)
