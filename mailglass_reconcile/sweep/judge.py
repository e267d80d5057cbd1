"""The judge: from open orphans to verdicts. It computes keys that are missing or outdated, and looks each id up once.

A sweep, the writers, lists, `explain`, `attempt_link` and the doctor all call it. Nothing is locked or written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.rules import keys, matching, providers, recipients, states
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.keys import Keys, Values
from mailglass_reconcile.rules.matching import Candidate, Verdict
from mailglass_reconcile.store import deliveries, ledger, webhook_events
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.deliveries import FEW, Question
from mailglass_reconcile.store.open_orphans import Open
from mailglass_reconcile.store.webhook_events import Reported


class Judged(NamedTuple):
    """An orphan, its keys as they are now, and the verdict on it."""

    orphan: Open
    keys: Keys
    verdict: Verdict

    @property
    def has_new_keys(self) -> bool:
        """Whether its keys were computed now and can be stored."""
        return self.keys.rule is not None and self.keys is not self.orphan.keys


class Event(NamedTuple):
    """What is judged: an event's id, its tenant, and its keys."""

    event_id: str
    tenant_id: str
    keys: Keys

    @property
    def pair(self) -> tuple[str, Keys]:
        """What its deliveries are looked up by."""
        return self.tenant_id, self.keys


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

    Args:
        tx: A transaction in which all statements see the same rows.
        orphans: What to judge.
    """
    events = [
        Event(orphan.event_id, orphan.tenant_id, its)
        for orphan, its in zip(orphans, current_keys(tx, orphans), strict=True)
    ]
    judged = _judged(tx, events)
    return [Judged(orphan, *each) for orphan, each in zip(orphans, judged, strict=True)]


def unchecked(judged: Iterable[Judged]) -> dict[str, Mapping[str, Any]]:
    """Return the note for each of *judged* that matches by its message id alone, because its recipient is unknown."""
    return {
        one.orphan.event_id: ledger.UNCHECKED
        for one in judged
        if one.verdict.delivery_id and one.keys.recipient is None
    }


def current_keys(tx: Transaction, orphans: Sequence[Open]) -> list[Keys]:
    """Return the keys of *orphans*: as stored if they are current, or else as the ledger's row gives them."""
    missing = [orphan for orphan in orphans if not orphan.keys.is_current]
    computed = _computed(tx, missing) if missing else {}
    return [computed.get(orphan.event_id, orphan.keys) for orphan in orphans]


def match(tx: Transaction, events: Sequence[tuple[str, Keys]]) -> list[Verdict]:
    """Return the verdict on each event, given as its tenant and its keys; every distinct id is looked up once."""
    found = _look_up(tx, events)
    return [matching.decide(tenant_id, its, found.of(tenant_id, its)) for tenant_id, its in events]


def decide(tx: Transaction, event_id: str, tenant_id: str, wanted: Keys) -> Decision:
    """Decide for one event, and name the deliveries that its ids name."""
    ((its, verdict),) = _judged(tx, [Event(event_id, tenant_id, wanted)])
    named = _look_up(tx, [(tenant_id, its)]).of(tenant_id, its)
    of_ids = tuple(one for id_ in its.candidate_ids for one in named.get(id_, ()))
    return Decision(*verdict, of_ids, its)


def _judged(tx: Transaction, events: Sequence[Event]) -> list[tuple[Keys, Verdict]]:
    """Return the keys of each event and the verdict on it, with the recipients that Mailglass's raw webhooks name.

    Those are read only where they may change the verdict.
    """
    found = _look_up(tx, [event.pair for event in events])
    judged = [(event.keys, _decide(event, found)) for event in events]
    unknown = [
        number
        for number, (its, verdict) in enumerate(judged)
        if verdict.state in (matching.MATCHED, matching.AMBIGUOUS) and its.recipient is None and not its.lost
    ]
    named = _recipients(tx, [events[number] for number in unknown]) if unknown else {}
    again = {
        number: event._replace(keys=event.keys._replace(recipient=named[event.event_id]))
        for number in unknown
        for event in [events[number]]
        if event.event_id in named
    }
    # Of an id that names few, every delivery is known already.
    wide = [event.pair for event in again.values() if not found.wide_ids.isdisjoint(event.keys.candidate_ids)]
    among = _look_up(tx, wide) if wide else found
    for number, event in again.items():
        is_wide = not found.wide_ids.isdisjoint(event.keys.candidate_ids)
        judged[number] = (event.keys, _decide(event, among if is_wide else found))
    return judged


def _decide(event: Event, found: _LookedUp) -> Verdict:
    return matching.decide(event.tenant_id, event.keys, found.of(*event.pair))


def _recipients(tx: Transaction, events: Iterable[Event]) -> dict[str, str]:
    """Return the recipients of Mailglass's events that its rows name, in the form in which they are compared."""
    by_id = {event.event_id: event for event in events if event.keys.provider in recipients.PROVIDERS}
    if not by_id:
        return {}
    found: dict[str, str | None] = {}
    reported: dict[str, list[Reported]] = defaultdict(list)
    for event_id, values in ledger.at_paths(tx, by_id, _REPORTED).items():
        provider_event_id, webhook_event_id, notification_id = map(keys.text_of, values)
        event = by_id[event_id]
        if provider_event_id is None or event.keys.provider is None:
            continue
        if event.keys.provider == recipients.IN_EVENT_ID:
            found[event_id] = recipients.in_event_id(provider_event_id, notification_id or "")
        else:
            reported[event.keys.provider].append(
                Reported(event_id, event.tenant_id, provider_event_id, webhook_event_id)
            )
    if reported and webhook_events.may_be_read(tx):
        for provider, of_provider in reported.items():
            found |= webhook_events.recipients(tx, provider, recipients.READERS[provider], of_provider)
    usable = {event_id: keys.text_of(f"string:{text}") for event_id, text in found.items() if text}
    return {event_id: address(text) for event_id, text in usable.items() if text}


_REPORTED = ("metadata/provider_event_id", "metadata/webhook_event_id", "metadata/sns_message_id")


def _computed(tx: Transaction, orphans: Sequence[Open]) -> dict[str, Keys]:
    """Compute keys from the ledger, and from the recipients that writers left with the open orphan."""
    by_provider: dict[str | None, list[Values]] = defaultdict(list)
    for values in ledger.values_of(tx, [orphan.event_id for orphan in orphans]):
        by_provider[keys.provider_of(values)].append(values)
    computed: dict[str, Keys] = {}
    for provider, of_provider in by_provider.items():
        ids: dict[str, list[str | None]] = {}
        if provider is not None:
            ids = ledger.at_paths(tx, [values.event_id for values in of_provider], keys.reads_of(provider))
        for values in of_provider:
            values.ids.extend(ids.get(values.event_id, ()))
            computed[values.event_id] = keys.keys_of(values)
    for orphan in orphans:
        if orphan.keys.recipient and orphan.event_id in computed:  # its writer left it there; then nothing is lost
            its = computed[orphan.event_id]
            computed[orphan.event_id] = its._replace(recipient=orphan.keys.recipient, lost=False)
        elif orphan.keys.lost and orphan.event_id in computed:  # it may have been erased
            computed[orphan.event_id] = computed[orphan.event_id]._replace(recipient=None, lost=True)
    return computed


class _LookedUp(NamedTuple):
    """Deliveries by candidate id; those of ids that name many, by question."""

    narrow: Mapping[str, Sequence[Candidate]]
    wide_ids: frozenset[str]
    wide: Mapping[Question, Sequence[Candidate]]

    def of(self, tenant_id: str, wanted: Keys) -> Mapping[str, Sequence[Candidate]]:
        """Return the deliveries that decide for an event, by candidate id."""
        if self.wide_ids.isdisjoint(wanted.candidate_ids):
            return self.narrow
        return {**self.narrow, **{q.candidate_id: self.wide[q] for q in _questions(tenant_id, wanted, self.wide_ids)}}


def _look_up(tx: Transaction, events: Sequence[tuple[str, Keys]]) -> _LookedUp:
    narrow: dict[str, list[Candidate]] = defaultdict(list)
    ids: set[str] = set()
    for _, its in events:
        ids.update(its.candidate_ids)
    for delivery in deliveries.of_ids(tx, ids) if ids else ():
        narrow[delivery.candidate_id].append(delivery)
    wide_ids = frozenset(id_ for id_, found in narrow.items() if len(found) > FEW)
    return _with_wide_ids(tx, events, narrow, wide_ids) if wide_ids else _LookedUp(narrow, wide_ids, {})


def _with_wide_ids(
    tx: Transaction, events: Sequence[tuple[str, Keys]], narrow: dict[str, list[Candidate]], wide_ids: frozenset[str]
) -> _LookedUp:
    wide: dict[Question, dict[str, Candidate]] = {q: {} for event in events for q in _questions(*event, wide_ids)}
    questions = list(wide)
    for number, delivery in deliveries.of_wide_ids(tx, questions):
        wide[questions[number]][delivery.delivery_id] = delivery
    return _LookedUp(narrow, wide_ids, {question: tuple(found.values()) for question, found in wide.items()})


def _questions(tenant_id: str, wanted: Keys, wide_ids: frozenset[str]) -> list[Question]:
    if wide_ids.isdisjoint(wanted.candidate_ids):
        return []
    recipient = address(wanted.recipient) if wanted.recipient else None
    known = providers.spellings(wanted.provider or "")
    return [Question(id_, tenant_id, known, recipient) for id_ in wanted.candidate_ids if id_ in wide_ids]
