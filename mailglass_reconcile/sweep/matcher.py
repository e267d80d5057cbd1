"""The judge: from open orphans to verdicts. It computes keys that are missing or outdated, and looks each id up once.

A sweep, the writers, lists, `explain`, `attempt_link` and the doctor all call it. Nothing is locked or written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import recipients, unchecked_links
from mailglass_reconcile.mailglass_compat.recipients import UnknownRecipient
from mailglass_reconcile.rules import matching, providers, states
from mailglass_reconcile.rules.addresses import make_index_key, normalize_address
from mailglass_reconcile.rules.matching import Candidate, Keys, Verdict
from mailglass_reconcile.store import deliveries, ledger
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.deliveries import SEPARATOR, Question
from mailglass_reconcile.store.open_orphans import Open


class Judged(NamedTuple):
    """An orphan, its keys as they are now, and the verdict on it."""

    orphan: Open
    keys: Keys
    verdict: Verdict

    @property
    def has_new_keys(self) -> bool:
        """Whether its keys were computed now and can be stored."""
        return self.keys.rank is not None and self.keys is not self.orphan.keys

    @property
    def is_unchecked(self) -> bool:
        """Whether it matches by its message id alone, because its recipient is unknown."""
        return self.verdict.delivery_id is not None and self.keys.recipient is None


class Event(NamedTuple):
    """What is judged: an event's id, its tenant, and its keys."""

    event_id: str
    tenant_id: str
    keys: Keys


class Decision(NamedTuple):
    """A verdict, the keys that decided, and the deliveries that decided, by candidate id.

    Of an id that is not wide, these are all of its deliveries. The keys have the recipient that a raw webhook names.
    """

    verdict: Verdict
    keys: Keys
    deliveries: Mapping[str, Collection[Candidate]]

    @property
    def state(self) -> states.MatchState:
        """The verdict's state."""
        return self.verdict.state

    @property
    def delivery_id(self) -> str | None:
        """The delivery that the event links to."""
        return self.verdict.delivery_id

    @property
    def named(self) -> tuple[Candidate, ...]:
        """The deliveries, in the order of the candidate ids."""
        return tuple(delivery for of_id in self.deliveries.values() for delivery in of_id)


def judge(tx: Transaction, orphans: Sequence[Open]) -> list[Judged]:
    """Return the verdict on each of *orphans*, in their order, with their keys as this process computes them.

    All statements of the transaction should see the same rows.
    """
    now = current_keys(tx, orphans)
    events = [Event(orphan.event_id, orphan.tenant_id, keys) for orphan, keys in zip(orphans, now, strict=True)]
    decisions = _decide_with_recipients(tx, events)
    return [Judged(orphan, it.keys, it.verdict) for orphan, it in zip(orphans, decisions, strict=True)]


def unchecked(judged: Iterable[Judged]) -> dict[str, str]:
    """Return the note for each of *judged* that matches by its message id alone, because its recipient is unknown."""
    return {one.orphan.event_id: unchecked_links.NOTE for one in judged if one.is_unchecked}


def current_keys(tx: Transaction, orphans: Sequence[Open]) -> list[Keys]:
    """Return the keys of *orphans*: as stored if they are current, or else as the ledger's row gives them."""
    outdated = {orphan.event_id: orphan.keys for orphan in orphans if not orphan.keys.is_current}
    computed = _computed(tx, outdated) if outdated else {}
    return [computed.get(orphan.event_id, orphan.keys) for orphan in orphans]


def match(tx: Transaction, events: Sequence[Event]) -> list[Verdict]:
    """Return the verdict on each event; every distinct question for deliveries is asked once."""
    return [decision.verdict for decision in _decide(tx, events)]


def decide(tx: Transaction, event_id: str, tenant_id: str, keys: Keys) -> Decision:
    """Decide for one event, with the recipient that a raw webhook names."""
    (decision,) = _decide_with_recipients(tx, [Event(event_id, tenant_id, keys)])
    return decision


def _decide_with_recipients(tx: Transaction, events: Sequence[Event]) -> list[Decision]:
    """Decide for each event, with the recipients that Mailglass's raw webhooks name.

    Those are read only where they may change the verdict.
    """
    decisions = _decide(tx, events)
    unknown = {
        position: UnknownRecipient(event.event_id, event.tenant_id, event.keys.provider)
        for position, (event, decision) in enumerate(zip(events, decisions, strict=True))
        if _may_change(event.keys, decision.verdict)
    }
    recipients_by_event = recipients.load_recipients(tx, list(unknown.values()))
    again = {
        position: events[position]._replace(keys=events[position].keys._replace(recipient=recipient))
        for position, event in unknown.items()
        if (recipient := recipients_by_event.get(event.event_id))
    }
    for position, decision in zip(again, _decide(tx, list(again.values())), strict=True):
        decisions[position] = decision
    return decisions


def _may_change(keys: Keys, verdict: Verdict) -> bool:
    return keys.recipient is None and not keys.lost and verdict.state in (matching.MATCHED, matching.AMBIGUOUS)


def _decide(tx: Transaction, events: Sequence[Event]) -> list[Decision]:
    """Decide for each event with its keys as they are."""
    questions = [_questions(event) for event in events]
    answers: dict[Question, dict[str, Candidate]] = {question: {} for each in questions for question in each}
    asked = list(answers)
    for position, delivery in deliveries.find(tx, asked):
        answers[asked[position]][delivery.delivery_id] = delivery
    decisions = []
    for event, own_questions in zip(events, questions, strict=True):
        by_id = {question.candidate_id: answers[question].values() for question in own_questions}
        decisions.append(Decision(matching.decide(event.tenant_id, event.keys, by_id), event.keys, by_id))
    return decisions


def _questions(event: Event) -> list[Question]:
    keys = event.keys
    recipient_key = make_index_key(normalize_address(keys.recipient)) if keys.recipient else None
    spellings = _joined_spellings(keys.provider or "")
    return [Question(id_, event.tenant_id, spellings, recipient_key) for id_ in keys.candidate_ids]


@lru_cache(maxsize=256)
def _joined_spellings(provider: str) -> str:
    return SEPARATOR.join(providers.spellings(provider))


def _computed(tx: Transaction, outdated: Mapping[str, Keys]) -> dict[str, Keys]:
    """Compute keys by event from the ledger, and from the recipients that writers left with the open orphan."""
    return {
        event_id: _with_what_is_stored(matching.keys_of(document), outdated[event_id])
        for event_id, document in ledger.documents(tx, outdated)
    }


def _with_what_is_stored(computed: Keys, stored: Keys) -> Keys:
    if stored.recipient:  # the event's writer left it there; then nothing is lost
        return computed._replace(recipient=stored.recipient, lost=False)
    return computed._replace(recipient=None, lost=True) if stored.lost else computed  # it may have been erased
