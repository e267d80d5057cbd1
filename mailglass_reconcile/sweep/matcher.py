"""The judge: from open orphans to verdicts. It computes keys that are missing or outdated, and looks each id up once.

A sweep, the writers, lists, `explain`, `attempt_link` and the doctor all call it. Nothing is locked or written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import recipients, unchecked_links
from mailglass_reconcile.mailglass_compat.recipients import Unknown
from mailglass_reconcile.rules import matching, providers, states
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.matching import Candidate, Keys, Verdict
from mailglass_reconcile.store import deliveries, ledger
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.deliveries import FEW, Question
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
    """A verdict, and the deliveries that the event's ids name; of an id that names many, those that decide.

    `keys` are those that decided: with the recipient that a raw webhook names, if one does.
    """

    state: states.Verdict
    delivery_id: str | None
    named: tuple[Candidate, ...]
    keys: Keys


def judge(tx: Transaction, orphans: Sequence[Open]) -> list[Judged]:
    """Return the verdict on each of *orphans*, in their order, with their keys as this process computes them.

    All statements of the transaction should see the same rows.
    """
    now = current_keys(tx, orphans)
    judged = _judged(tx, [Event(one.event_id, one.tenant_id, its) for one, its in zip(orphans, now, strict=True)])
    return [Judged(orphan, *each) for orphan, each in zip(orphans, judged, strict=True)]


def unchecked(judged: Iterable[Judged]) -> dict[str, str]:
    """Return the note for each of *judged* that matches by its message id alone, because its recipient is unknown."""
    return {one.orphan.event_id: unchecked_links.NOTE for one in judged if one.is_unchecked}


def current_keys(tx: Transaction, orphans: Sequence[Open]) -> list[Keys]:
    """Return the keys of *orphans*: as stored if they are current, or else as the ledger's row gives them."""
    outdated = {orphan.event_id: orphan.keys for orphan in orphans if not orphan.keys.is_current}
    computed = _computed(tx, outdated) if outdated else {}
    return [computed.get(orphan.event_id, orphan.keys) for orphan in orphans]


def match(tx: Transaction, events: Sequence[Event]) -> list[Verdict]:
    """Return the verdict on each event; every distinct id is looked up once."""
    found = _look_up(tx, events)
    return [found.verdict(one) for one in events]


def decide(tx: Transaction, event_id: str, tenant_id: str, wanted: Keys) -> Decision:
    """Decide for one event, and name the deliveries that its ids name."""
    ((its, verdict),) = _judged(tx, [Event(event_id, tenant_id, wanted)])
    event = Event(event_id, tenant_id, its)
    named = _look_up(tx, [event]).of(event)
    of_ids = tuple(one for id_ in its.candidate_ids for one in named.get(id_, ()))
    return Decision(*verdict, of_ids, its)


def _judged(tx: Transaction, events: Sequence[Event]) -> list[tuple[Keys, Verdict]]:
    """Return the keys of each event and the verdict on it, with the recipients that Mailglass's raw webhooks name.

    Those are read only where they may change the verdict.
    """
    found = _look_up(tx, events)
    verdicts = [found.verdict(one) for one in events]
    unknown = [
        Unknown(one.event_id, one.tenant_id, one.keys.provider)
        for one, verdict in zip(events, verdicts, strict=True)
        if _may_change(one, verdict)
    ]
    if named := recipients.named(tx, unknown):
        events, verdicts = _judged_again(tx, events, verdicts, named, found)
    return [(one.keys, verdict) for one, verdict in zip(events, verdicts, strict=True)]


def _may_change(event: Event, verdict: Verdict) -> bool:
    its = event.keys
    return its.recipient is None and not its.lost and verdict.state in (matching.MATCHED, matching.AMBIGUOUS)


def _judged_again(
    tx: Transaction, events: Sequence[Event], before: Sequence[Verdict], named: Mapping[str, str], found: _LookedUp
) -> tuple[list[Event], list[Verdict]]:
    """Return *events* and the verdicts on them as the recipients that are *named* make them."""
    now, verdicts = list(events), list(before)
    again = [number for number, event in enumerate(events) if event.event_id in named]
    for number in again:
        event = events[number]
        now[number] = event._replace(keys=event.keys._replace(recipient=named[event.event_id]))
    # Of an id that names few, every delivery is known already.
    wide = {number for number in again if not found.wide_ids.isdisjoint(events[number].keys.candidate_ids)}
    among = _look_up(tx, [now[number] for number in wide]) if wide else found
    for number in again:
        verdicts[number] = (among if number in wide else found).verdict(now[number])
    return now, verdicts


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


class _LookedUp(NamedTuple):
    """Deliveries by candidate id; those of ids that name many, by question."""

    narrow: Mapping[str, Sequence[Candidate]]
    wide_ids: Set[str]
    wide: Mapping[Question, Sequence[Candidate]]

    def verdict(self, event: Event) -> Verdict:
        return matching.decide(event.tenant_id, event.keys, self.of(event))

    def of(self, event: Event) -> Mapping[str, Sequence[Candidate]]:
        """Return the deliveries that decide for an event, by candidate id."""
        if self.wide_ids.isdisjoint(event.keys.candidate_ids):
            return self.narrow
        return {**self.narrow, **{q.candidate_id: self.wide[q] for q in _questions(event, self.wide_ids)}}


def _look_up(tx: Transaction, events: Sequence[Event]) -> _LookedUp:
    narrow: dict[str, list[Candidate]] = defaultdict(list)
    ids = {id_ for one in events for id_ in one.keys.candidate_ids}
    wide_ids = set()
    for delivery in deliveries.of_ids(tx, ids) if ids else ():
        narrow[delivery.candidate_id].append(delivery)
        if len(narrow[delivery.candidate_id]) > FEW:
            wide_ids.add(delivery.candidate_id)
    return _with_wide_ids(tx, events, narrow, wide_ids) if wide_ids else _LookedUp(narrow, wide_ids, {})


def _with_wide_ids(
    tx: Transaction, events: Sequence[Event], narrow: dict[str, list[Candidate]], wide_ids: Set[str]
) -> _LookedUp:
    wide: dict[Question, dict[str, Candidate]] = {q: {} for event in events for q in _questions(event, wide_ids)}
    questions = list(wide)
    for number, delivery in deliveries.of_wide_ids(tx, questions):
        wide[questions[number]][delivery.delivery_id] = delivery
    return _LookedUp(narrow, wide_ids, {question: tuple(found.values()) for question, found in wide.items()})


def _questions(event: Event, wide_ids: Set[str]) -> list[Question]:
    its = event.keys
    if wide_ids.isdisjoint(its.candidate_ids):
        return []
    recipient = address(its.recipient) if its.recipient else None
    known = providers.spellings(its.provider or "")
    return [Question(id_, event.tenant_id, known, recipient) for id_ in its.candidate_ids if id_ in wide_ids]
