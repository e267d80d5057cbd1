"""Why one event is linked or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import format_command, with_local_names
from mailglass_reconcile.linking import matcher
from mailglass_reconcile.linking.matcher import EventMatch, OrphanMatch
from mailglass_reconcile.ops import deliveries, lock_holders, orphans
from mailglass_reconcile.ops.deliveries import DeliverySummary, NamingOrphan
from mailglass_reconcile.ops.lock_holders import LockHolder
from mailglass_reconcile.rules import matching, provider_rules, remedy, states
from mailglass_reconcile.rules.addresses import ERASED, contains_address, normalize_address
from mailglass_reconcile.rules.events import Bounce
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.matching import (
    MATCHED,
    RECIPIENT_MISMATCH,
    TENANT_MISMATCH,
    UNMATCHABLE,
    DeliveryRow,
    spellings_of,
)
from mailglass_reconcile.rules.remedy import WrongTenant
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.rules.states import EventState, MatchState
from mailglass_reconcile.rules.times import format_time
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.tables import ledger, open_orphans
from mailglass_reconcile.store.tables.open_orphans import MAX_TENANT_LENGTH, NO_KEYS, OrphanRow

JsonType = Literal["string", "boolean", "number", "array", "object"]

TIMEOUT_MS = 24_000
EVENTS = 20
"""Events of a delivery or a message that are explained at most: one id may name a hundred thousand deliveries."""
DELIVERIES_READ = 1_000
"""Deliveries of a message among which the newest are chosen."""

# Times in ISO 8601 without a zone, which is UTC; infinity stays infinity.
_LEDGER_ROW = """
SELECT e.id::text, e.tenant_id, left(e.type, 512) AS type,
       left(e.reject_reason, 512) AS reject_reason,
       CASE WHEN e.metadata ->> 'bounce' IN ('hard', 'soft') THEN e.metadata ->> 'bounce' END AS bounce,
       left(e.metadata ->> 'smtp_status', 100) AS smtp_status, e.delivery_id::text, e.needs_reconciliation,
       r.id::text AS reconciled_by, r.delivery_id::text AS linked_to,
       r.metadata -> 'recipient_checked' = 'false' AS unchecked,
       starts_with(e.idempotency_key, 'webhook:') IS TRUE AS recorded,
       {schema}.mailglass_reconcile_iso_v1(r.inserted_at) AS linked_at,
       r.metadata ->> 'linked_by' = 'hand' AS by_hand, left(r.metadata ->> 'linked_by_actor', 512) AS actor,
       left(r.metadata ->> 'reason', 512) AS reason,
       o.event_id IS NOT NULL AS open, o.refused,
       {schema}.mailglass_reconcile_iso_v1(a.arrived_at) AS arrived,
       {schema}.mailglass_reconcile_iso_v1(a.arrived_at + make_interval(secs => :grace_seconds)) AS eligible,
       {schema}.mailglass_reconcile_iso_v1(a.arrived_at + make_interval(mins => :max_age_minutes)) AS expires,
       a.arrived_at <= now()::timestamp - make_interval(mins => :max_age_minutes) AS expired,
       a.arrived_at > now()::timestamp - make_interval(secs => :grace_seconds) AS in_grace
  FROM {schema}.mailglass_events AS e
  LEFT JOIN LATERAL {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id) AS l ON true
  LEFT JOIN {schema}.mailglass_events AS r ON r.id = l.id
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = e.id
 CROSS JOIN LATERAL (SELECT coalesce(o.arrived_at, e.inserted_at) AS arrived_at) AS a
 WHERE e.id = CAST(:event_id AS uuid)
"""


@dataclass(frozen=True, slots=True)
class SearchedField:
    """A field of an event that is searched for a message id.

    Attributes:
        path: The names on the way to it, separated by slashes.
        holds: The JSON type of its value; None for none.
    """

    path: str
    holds: JsonType | None


@dataclass(frozen=True, slots=True)
class TriedId:
    """A candidate id, the field from which it was read, and the number of deliveries with it that were read."""

    id: str
    read_from: str | None
    deliveries: int


@dataclass(frozen=True, slots=True)
class CandidateDelivery:
    """A delivery that one of an event's candidate ids names, without its address.

    Attributes:
        candidate_id: The id.
        delivery_id: The delivery.
        tenant_id: The delivery's tenant.
        same_tenant: True if it is of the event's tenant.
        same_provider: True if it has the event's provider, or none.
        same_recipient: True if it is to the event's recipient, or none is known.
        provider: The delivery's provider.
        mailable: The kind of message.
        state: The type of the event that it shows.
        stored_at: When it was stored, in ISO 8601.
        command: The command that links the event to it manually, if that is possible and needed.
    """

    candidate_id: str
    delivery_id: str
    tenant_id: str
    same_tenant: bool
    same_provider: bool
    same_recipient: bool
    provider: str | None
    mailable: str | None
    state: str | None
    stored_at: str | None
    command: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an event is linked or not; times are in ISO 8601, UTC.

    Attributes:
        event_id: The event.
        state: One of `states.EVENT_STATES`.
        sentence: The meaning of the state, in a sentence.
        tenant_id: The event's tenant.
        delivery_id: The delivery to which it is linked, or would be linked now.
        candidate_ids: The ids tried, in order; known while it is not linked.
        candidates: The deliveries that they name.
        type: The event's type.
        reject_reason: Why a message was rejected or bounced, if known.
        bounce: `hard` or `soft`, if its writer said so.
        smtp_status: The codes of the SMTP reply, such as `550 5.1.1`, if known.
        provider: The event's provider, in its canonical spelling.
        arrived_at: When the ledger took it.
        rule: The provider's rule, `provider/version`; None for an event that was never looked up.
        reads: The fields that the rule reads, in order.
        tried: The candidate ids, in order.
        recipient_known: True if the event's recipient is known.
        recipient_checked: False if it was, or would be, linked by its message id alone, because its recipient could not
            be read.
        verdict: The result of matching now, for an event in its grace period or an expired one.
        remedy: The steps that let it be linked, in order; empty if none is needed.
        eligible_at: When full sweeps begin to check it; each of them does until `expires_at`.
        expires_at: When it becomes too old.
        refused: The number of times that the database refused to read or link it.
        linked_at: When it was linked.
        reconciled_by: The `reconciled` event that linked or settled it.
        linked_by: `hand` if a person linked it; None if not.
        linked_by_actor: The name of that person.
        reason: Why, in that person's words.
        held_by: The session whose open transaction has locked the event or its delivery, so that sweeps skip it, with
            the fields of `LockHolder`; None if there is none, or if it is not found.
    """

    event_id: str
    state: EventState
    sentence: str
    tenant_id: str | None = None
    delivery_id: str | None = None
    candidate_ids: tuple[str, ...] = ()
    candidates: tuple[CandidateDelivery, ...] = ()
    type: str | None = None
    reject_reason: str | None = None
    bounce: Bounce | None = None
    smtp_status: str | None = None
    provider: str | None = None
    arrived_at: str | None = None
    rule: str | None = None
    reads: tuple[SearchedField, ...] = ()
    tried: tuple[TriedId, ...] = ()
    recipient_known: bool | None = None
    recipient_checked: bool | None = None
    verdict: MatchState | None = None
    remedy: tuple[str, ...] = ()
    eligible_at: str | None = None
    expires_at: str | None = None
    refused: int = 0
    linked_at: str | None = None
    reconciled_by: str | None = None
    linked_by: Literal["hand"] | None = None
    linked_by_actor: str | None = None
    reason: str | None = None
    held_by: LockHolder | None = None


class Fact(NamedTuple):
    """A fact about an event, which terminal, dashboard and admin show with their own markup.

    Attributes:
        name: What it is about; empty for a further step of a remedy.
        text: The fact; with `at`, `{}` stands for the time.
        at: A time in the text, in ISO 8601, or a dash for an unknown one.
        is_delivery: True if the text is the id of a delivery.
        is_remedy: True for a step of the remedy.
    """

    name: str
    text: str
    at: str | None = None
    is_delivery: bool = False
    is_remedy: bool = False

    @property
    def plain_text(self) -> str:
        """The fact with its time in words."""
        return self.text.format(format_time(self.at)) if self.at else self.text


def _time_fact(name: str, text: str, at: str | None) -> Fact:
    return Fact(name, text, at or "-")


def facts(event: Explanation) -> Iterator[Fact]:
    """Yield what the ledger says about an event, and how it was linked."""
    yield Fact("type", event.type or "-")
    for name, value in (("bounce", event.bounce), ("reason", event.reject_reason), ("SMTP", event.smtp_status)):
        if value:
            yield Fact(name, value)
    yield Fact("tenant", event.tenant_id or "-")
    yield Fact("provider", event.provider or "none that can be used")
    if hint := provider_rules.mistyped(event.provider or ""):
        yield Fact("note", hint)
    yield _time_fact("arrived", "{}", event.arrived_at)
    if event.delivery_id:
        has_delivery = event.linked_at or event.state == "attached"
        yield Fact("delivery" if has_delivery else "would get", event.delivery_id, is_delivery=True)
    if event.linked_at:
        yield _time_fact("linked", f"{{}} by the event {event.reconciled_by}", event.linked_at)
    elif event.reconciled_by:
        yield Fact("settled", f"by the event {event.reconciled_by}")
    if event.recipient_checked is False:
        yield Fact("recipient", states.NOT_CHECKED)
    if event.linked_by:
        yield Fact("manually", f"{event.linked_by_actor or 'an unknown user'}: {event.reason or 'no reason'}")


def outlook(event: Explanation) -> Iterator[Fact]:
    """Yield what happens next to an event that is not linked, and the steps that let it be linked."""
    if event.state in ("waiting", "expired") and event.verdict:
        yield Fact("match", f"a sweep now would find it {event.verdict}")
    for number, step in enumerate(event.remedy, start=1):
        text = f"{number}. {step[:1].upper()}{step[1:]}" if len(event.remedy) > 1 else step
        yield Fact("to link it" if number == 1 else "", text, is_remedy=True)
    if event.held_by and event.held_by.since:
        yield Fact("held since", "{}", event.held_by.since)
    if event.refused:
        yield Fact("refused", f"{pluralize(event.refused, 'time')} by the database; the sweep's log gives the SQLSTATE")
    if event.state == "waiting":
        yield _time_fact("next try", "first full sweep after {}", event.eligible_at)
    elif event.state == "expired":
        yield Fact("next try", "never")
    elif event.expires_at:
        next_sweep = "first full sweep after that transaction" if event.held_by else "next full sweep"
        yield _time_fact("next try", f"{next_sweep}; expires {{}}", event.expires_at)


class Origins(NamedTuple):
    """The fields that the rule of an event's provider reads, and the ids from them.

    Attributes:
        provider: The event's provider, in its canonical spelling, or None if it names none that can be used.
        rule: The rule's mark, `provider/version`; None if the event names no provider.
        reads: Each field that is read, in order.
        places: For each candidate id the place it comes from; an id that the rule makes of several is not here.
    """

    provider: str | None
    rule: str | None
    reads: tuple[SearchedField, ...]
    places: dict[str, str]


def explain(database: Database, event_id: UUID) -> Explanation:
    """Explain why an event is linked or not, in a read-only transaction."""
    runtime.load_imports(only_warn=True)
    with database.reading(TIMEOUT_MS) as tx:
        return explain_within(tx, event_id)


def explain_id(database: Database, id_: UUID) -> tuple[list[Explanation], list[DeliverySummary]]:
    """Explain an event, or the latest events of a delivery; with the delivery asked for, or the one of the event."""
    runtime.load_imports(only_warn=True)
    with database.reading(TIMEOUT_MS) as tx:
        event = explain_within(tx, id_)
        if event.state != "unknown":
            expired = None
            if event.state == "expired":
                expired = NamingOrphan(event.event_id, event.tenant_id or "", fits_recipient=True, is_expired=True)
            ids = [event.delivery_id] if event.delivery_id else []
            return [event], deliveries.load_deliveries(tx, ids, expired=expired) if ids else []
        delivery_list = deliveries.load_deliveries(tx, [str(id_)])
        if not delivery_list:
            return [event], []
        event_ids = _event_ids(tx, delivery_list, delivery_list[0].message_id)
        return [explain_within(tx, event_id) for event_id in event_ids], delivery_list


def explain_message(database: Database, message_id: str) -> tuple[list[Explanation], list[DeliverySummary]]:
    """Explain the events of a message, in any spelling of its id: the latest, and the open orphans that name it."""
    runtime.load_imports(only_warn=True)
    with database.reading(TIMEOUT_MS) as tx:
        delivery_list, _ = deliveries.find_newest(
            tx, message_ids=spellings_of(message_id), limit=EVENTS, read_limit=DELIVERIES_READ
        )
        event_ids = _event_ids(tx, delivery_list, message_id)
        return [explain_within(tx, event_id) for event_id in event_ids], delivery_list


def _event_ids(tx: Transaction, delivery_list: Sequence[DeliverySummary], message_id: str | None) -> list[UUID]:
    """Return the latest events of deliveries, and the open orphans of their message, at most `EVENTS` of each."""
    events = (
        deliveries.load_events(tx, [delivery.delivery_id for delivery in delivery_list], EVENTS)
        if delivery_list
        else []
    )
    event_ids = [event.event_id for event in events]
    if message_id:
        newest = orphans.find_newest(tx, message_ids=spellings_of(message_id), limit=EVENTS)
        event_ids += [orphan.event_id for orphan in newest.orphans]
    return [UUID(event_id) for event_id in dict.fromkeys(event_ids)]


def explain_within(tx: Transaction, event_id: UUID) -> Explanation:
    """Explain an event in the caller's transaction; the adopter's rules must be loaded."""
    bounds = {
        "event_id": str(event_id),
        "max_age_minutes": tx.settings.max_age_minutes,
        "grace_seconds": tx.settings.grace_seconds,
    }
    row = tx.execute(_LEDGER_ROW, bounds).one_or_none()
    if row is None:
        return Explanation(str(event_id), "unknown", states.explain_state("unknown"))
    final_state = _final_state(row)
    origins = _load_origins(tx, row.id)
    if final_state in ("attached", "no_orphan"):
        origins = origins._replace(rule=None, reads=())  # it needs no delivery
    if final_state:
        return _explain_final(row, final_state, origins)
    (orphan,) = open_orphans.read(tx.reading, [row.id]) or [OrphanRow(row.id, row.tenant_id, "", NO_KEYS)]
    (keys,) = matcher.current_keys(tx.reading, [orphan])
    event_match = matcher.match_event(tx.reading, row.id, row.tenant_id, keys)
    mismatch = event_match.state == RECIPIENT_MISMATCH
    erased = mismatch and any(candidate.recipient.endswith(ERASED) for candidate in event_match.deliveries)
    candidate_deliveries = deliveries.load_deliveries(tx, [delivery.delivery_id for delivery in event_match.deliveries])
    deliveries_by_id = {delivery.delivery_id: delivery for delivery in candidate_deliveries}
    explanation = replace(
        _explain_open(row, origins, event_match, deliveries_by_id, erased=erased),
        remedy=_find_remedy(tx, row, event_match, erased=erased),
    )
    if explanation.state == MATCHED:
        match = OrphanMatch(orphan, event_match.keys, event_match.result)
        if holder := lock_holders.find_holder(tx, [match]):
            sentence = _HELD.format(holder.name)
            return replace(explanation, sentence=sentence, remedy=(holder.remedy,), held_by=holder)
    if event_match.state == UNMATCHABLE and ledger.is_oversized(tx, row.id):
        return replace(explanation, sentence=_OVERSIZED, remedy=(_REMEDY_OVERSIZED,))
    return explanation


def _load_origins(tx: Transaction, event_id: str) -> Origins:
    """Read the rule's fields again, and compute the candidate ids of each field alone."""
    ((_, document),) = ledger.load_documents(tx.reading, [event_id])
    provider = document.provider
    if provider is None:
        return Origins(None, None, (), {})
    rule = provider_rules.rule_of(provider)
    places: dict[str, str] = {}
    for path in rule.paths:
        for id_ in matching.keys_of_one(document, path).candidate_ids:
            places.setdefault(id_, "/".join(path))
    reads = tuple(SearchedField("/".join(path), _JSON_TYPES.get(type(document.at(path)))) for path in rule.paths)
    return Origins(provider, rule.name, reads, places)


_JSON_TYPES: dict[type, JsonType] = {
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
}


_HELD = "its delivery exists, but {} has locked it or the event, which sweeps skip until that ends"
_OVERSIZED = "its metadata or normalized_payload has more than 64 kB of text, which is not read, so it has no usable id"
_REMEDY_OVERSIZED = "write events with less than 64 kB in each of these columns; this event stays unmatchable"
_TENANT_TOO_LONG = f"its tenant id has more than {MAX_TENANT_LENGTH:,} characters; such events are never linked"


_REPAIR = "run `mailglass-reconcile prune`, which repairs that table from the ledger"


def _final_state(row: sa.Row[Any]) -> EventState | None:
    if row.delivery_id:
        return "attached"
    if not row.needs_reconciliation:
        return "no_orphan"
    if row.reconciled_by:
        return "linked" if row.linked_to else "settled"
    if not row.open and not row.expired:
        return "missing"
    return None


def _explain_final(row: sa.Row[Any], state: EventState, origins: Origins) -> Explanation:
    is_too_long = state == "missing" and len(row.tenant_id) > MAX_TENANT_LENGTH
    return Explanation(
        row.id,
        state,
        _TENANT_TOO_LONG if is_too_long else states.explain_state(state),
        **_ledger_fields(row, origins),
        delivery_id=row.linked_to or row.delivery_id,
        provider=origins.provider,
        remedy=(with_local_names(_REPAIR),) if state == "missing" and not is_too_long else (),
        recipient_checked=False if row.unchecked else None,
        linked_at=row.linked_at if row.linked_to else None,
        reconciled_by=row.reconciled_by,
        linked_by="hand" if row.by_hand else None,
        linked_by_actor=_without_address(row.actor) if row.by_hand else None,
        reason=_without_address(row.reason) if row.by_hand else None,
    )


def _ledger_fields(row: sa.Row[Any], origins: Origins) -> dict[str, Any]:
    """Return the fields that do not depend on the state: what the ledger says, and what its provider's rule reads."""
    return {
        "tenant_id": row.tenant_id,
        "arrived_at": row.arrived,
        "rule": origins.rule,
        "reads": origins.reads,
        "type": row.type,
        "reject_reason": _without_address(row.reject_reason),
        "bounce": row.bounce,
        "smtp_status": smtp_status(row.smtp_status),
    }


def _without_address(text: str | None) -> str | None:
    """Return a text of the ledger, or None if it contains an address: only `link` of this package refuses one."""
    return None if text is None or contains_address(text) else text


def _explain_open(
    row: sa.Row[Any],
    origins: Origins,
    event_match: EventMatch,
    deliveries_by_id: Mapping[str, DeliverySummary],
    *,
    erased: bool,
) -> Explanation:
    keys = event_match.keys
    state: EventState = "expired" if row.expired else "waiting" if row.in_grace else event_match.state
    return Explanation(
        row.id,
        state,
        states.explain_state(
            state,
            provider=keys.provider,
            recipient_lost=keys.lost,
            recipient_erased=erased,
        ),
        **_ledger_fields(row, origins),
        delivery_id=event_match.delivery_id,
        candidate_ids=keys.candidate_ids,
        candidates=tuple(
            _describe_candidate(candidate, deliveries_by_id.get(candidate.delivery_id), row, event_match)
            for candidate in event_match.deliveries
        ),
        provider=keys.provider,
        tried=tuple(_tried_id(id_, origins, event_match) for id_ in keys.candidate_ids),
        recipient_known=keys.recipient is not None,
        recipient_checked=False if event_match.delivery_id and not keys.recipient and not row.recorded else None,
        verdict=event_match.state,
        eligible_at=None if row.expired else row.eligible,
        expires_at=row.expires,
        refused=row.refused or 0,
    )


def _tried_id(candidate: str, origins: Origins, event_match: EventMatch) -> TriedId:
    number = sum(delivery.candidate_id == candidate for delivery in event_match.deliveries)
    return TriedId(candidate, origins.places.get(candidate), number)


def _find_remedy(tx: Transaction, row: sa.Row[Any], event_match: EventMatch, *, erased: bool) -> tuple[str, ...]:
    """Return the steps that let an open or an expired event be linked."""
    wrong_tenant = None
    if event_match.state == TENANT_MISMATCH and (provider := event_match.keys.provider):
        foreign = next(candidate for candidate in event_match.deliveries if candidate.has_provider(provider))
        in_mailglass = installed.is_made_by_mailglass(tx)
        wrong_tenant = WrongTenant(foreign.tenant_id, foreign.candidate_id, provider, row.type, in_mailglass)
    return remedy.find_steps(
        row.id,
        event_match.state,
        is_expired=row.expired,
        provider=event_match.keys.provider,
        has_candidates=any(candidate.tenant_id == row.tenant_id for candidate in event_match.deliveries),
        recipient_lost=event_match.keys.lost,
        recipient_erased=erased,
        wrong_tenant=wrong_tenant,
    )


def _describe_candidate(
    candidate: DeliveryRow, delivery: DeliverySummary | None, row: sa.Row[Any], event_match: EventMatch
) -> CandidateDelivery:
    """Return a candidate without its address, with the command that links the event to it manually."""
    keys, is_same_tenant = event_match.keys, candidate.tenant_id == row.tenant_id
    can_link = is_same_tenant and (event_match.state != MATCHED or row.expired)
    command = format_command(f"mailglass-reconcile link {row.id} {candidate.delivery_id} --reason ''")
    return CandidateDelivery(
        candidate.candidate_id,
        candidate.delivery_id,
        candidate.tenant_id,
        same_tenant=is_same_tenant,
        same_provider=candidate.has_provider(keys.provider),
        same_recipient=keys.recipient is None
        or normalize_address(candidate.recipient) == normalize_address(keys.recipient),
        provider=delivery.provider if delivery else None,
        mailable=delivery.mailable if delivery else None,
        state=delivery.type if delivery else None,
        stored_at=delivery.stored_at if delivery else None,
        command=command if can_link else None,
    )
