"""The matcher: from open orphans to match results. It computes keys that are missing or outdated.

A sweep, the writers, lists, `explain`, `attempt_link` and the doctor all call it. Nothing is locked or written. A
sweep's transactions end before Python computes with what they have read; all others read in one of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from mailglass_reconcile.mailglass_compat import recipients, unchecked_links
from mailglass_reconcile.mailglass_compat.recipients import UnknownRecipient
from mailglass_reconcile.rules import matching, states
from mailglass_reconcile.rules.addresses import make_index_key, normalize_address
from mailglass_reconcile.rules.matching import DeliveryRow, Keys, MatchResult
from mailglass_reconcile.store.database import Reading
from mailglass_reconcile.store.tables import deliveries, ledger
from mailglass_reconcile.store.tables.deliveries import Question
from mailglass_reconcile.store.tables.open_orphans import OrphanRow


class OrphanMatch(NamedTuple):
    """An orphan, its keys as they are now, and its match result."""

    orphan: OrphanRow
    keys: Keys
    result: MatchResult

    @property
    def has_new_keys(self) -> bool:
        """True if its keys were computed now and can be stored."""
        return self.keys.rank is not None and self.keys is not self.orphan.keys

    @property
    def is_unchecked(self) -> bool:
        """True if it matches by its message id alone, because its recipient is unknown."""
        return self.result.delivery_id is not None and self.keys.recipient is None


class EventKeys(NamedTuple):
    """An event's id, its tenant, and its keys."""

    event_id: str
    tenant_id: str
    keys: Keys


class EventMatch(NamedTuple):
    """The result of `attempt_link`.

    Attributes:
        state: `matched`, or why the event would not be linked, such as `ambiguous`
            (`docs/trouble.md#states-of-an-event`).
        delivery_id: The delivery that the event would be linked to, or None.
    """

    result: MatchResult
    keys: Keys  # with the recipient that a raw webhook names
    deliveries_by_id: Mapping[str, Collection[DeliveryRow]]  # of an id that is not wide all, perhaps of other events

    @property
    def state(self) -> states.MatchState:
        """The result's state."""
        return self.result.state

    @property
    def delivery_id(self) -> str | None:
        """The delivery that the event links to."""
        return self.result.delivery_id

    @property
    def deliveries(self) -> tuple[DeliveryRow, ...]:
        """The deliveries, in the order of the candidate ids."""
        return tuple(chain.from_iterable(self.deliveries_by_id.get(id_, ()) for id_ in self.keys.candidate_ids))


def match_orphans(reading: Reading, orphans: Sequence[OrphanRow]) -> list[OrphanMatch]:
    """Match orphans, and return the results in their order, with their keys as this process computes them."""
    events = [
        EventKeys(orphan.event_id, orphan.tenant_id, keys)
        for orphan, keys in zip(orphans, current_keys(reading, orphans), strict=True)
    ]
    matches = _match_with_recipients(reading, events)
    return [OrphanMatch(orphan, match.keys, match.result) for orphan, match in zip(orphans, matches, strict=True)]


def unchecked_metadata(matches: Iterable[OrphanMatch]) -> dict[str, str]:
    """Return the note, by event, for each that matches by its message id alone, because its recipient is unknown."""
    return {match.orphan.event_id: unchecked_links.METADATA for match in matches if match.is_unchecked}


def current_keys(reading: Reading, orphans: Sequence[OrphanRow]) -> list[Keys]:
    """Return the keys of *orphans*: as stored if they are current, or else computed from the ledger's row."""
    outdated = {orphan.event_id: orphan.keys for orphan in orphans if not orphan.keys.is_current}
    computed = _compute(reading, outdated) if outdated else {}
    return [computed.get(orphan.event_id, orphan.keys) for orphan in orphans]


def match_events(reading: Reading, events: Sequence[EventKeys]) -> list[MatchResult]:
    """Match events with their keys as they are; every distinct question for deliveries is asked once."""
    return [match.result for match in _match_keys(reading, events)]


def match_event(reading: Reading, event_id: str, tenant_id: str, keys: Keys) -> EventMatch:
    """Match one event, with the recipient that a raw webhook names."""
    (match,) = _match_with_recipients(reading, [EventKeys(event_id, tenant_id, keys)])
    return match


def _match_with_recipients(reading: Reading, events: Sequence[EventKeys]) -> list[EventMatch]:
    """Match events, with the recipients that Mailglass's raw webhooks name.

    Raw webhooks are read only where they may change the result, and then the deliveries once more.
    """
    matches = _match_keys(reading, events)
    unknown = {
        event.event_id: (position, event)
        for position, (event, match) in enumerate(zip(events, matches, strict=True))
        if _may_change(event.keys, match.result)
    }
    unknown_recipients = [
        UnknownRecipient(event.event_id, event.tenant_id, event.keys.provider) for _, event in unknown.values()
    ]
    changed = {}
    for event_id, recipient in recipients.load_recipients(reading, unknown_recipients).items():
        position, event = unknown[event_id]
        changed[position] = event._replace(keys=event.keys._replace(recipient=recipient))
    for position, match in zip(changed, _match_keys(reading, list(changed.values())), strict=True):
        matches[position] = match
    return matches


def _may_change(keys: Keys, result: MatchResult) -> bool:
    is_unknown = keys.recipient is None and not keys.lost
    return is_unknown and result.state in (matching.MATCHED, matching.AMBIGUOUS)


def _match_keys(reading: Reading, events: Sequence[EventKeys]) -> list[EventMatch]:
    """Match events with their keys as they are, all from one snapshot of the deliveries."""
    answers = deliveries.find(reading, list(dict.fromkeys(chain.from_iterable(map(_questions, events)))))
    matches = []
    for event in events:
        by_id = answers.by_id
        if answers.by_question:
            by_id = {question.candidate_id: answers.of(question) for question in _questions(event)}
        matches.append(EventMatch(matching.match(event.tenant_id, event.keys, by_id), event.keys, by_id))
    return matches


def _questions(event: EventKeys) -> list[Question]:
    keys = event.keys
    recipient_key = make_index_key(normalize_address(keys.recipient)) if keys.recipient else None
    return [Question(id_, event.tenant_id, recipient_key) for id_ in keys.candidate_ids]


def _compute(reading: Reading, outdated: Mapping[str, Keys]) -> dict[str, Keys]:
    """Compute keys by event from the ledger, and from the recipients that writers left with the open orphan."""
    return {
        event_id: _merge_stored(matching.keys_of(document), outdated[event_id])
        for event_id, document in ledger.load_documents(reading, outdated)
    }


def _merge_stored(computed: Keys, stored: Keys) -> Keys:
    if stored.recipient:  # the event's writer left it there; then nothing is lost
        return computed._replace(recipient=stored.recipient, lost=False)
    return computed._replace(recipient=None, lost=True) if stored.lost else computed  # it may have been erased
