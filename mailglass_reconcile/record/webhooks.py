"""Writing the events of a webhook: each to its delivery, or as an orphan that a sweep will link.

Everything happens in the caller's transaction. No address goes into the ledger, from
which nothing can be erased: a recipient is kept with the open orphan, and is erased with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.linking.matcher import EventKeys, match_events
from mailglass_reconcile.record import after_commit, failures, validation
from mailglass_reconcile.record.after_commit import LookUp, Recorded, make_action
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import contains_address, normalize_address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.rules.matching import MAX_ID_LENGTH, Document, Keys, keys_of
from mailglass_reconcile.rules.provider_rules import SMTP_MESSAGE_ID
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import Transaction, uuid7s
from mailglass_reconcile.store.tables import ledger
from mailglass_reconcile.store.tables.ledger import Entry
from mailglass_reconcile.store.tables.stored_keys import StoredKeys

ADDRESS_KEYS = ("recipient", "email")
"""Top-level names under which providers put the recipient's address, in any case."""

RESERVED = (*ADDRESS_KEYS, "recipient_known", "provider_message_id")
"""Top-level names of metadata that sweeps read: a caller's own values under them are left out."""

BOUNCE = "bounce"
SMTP_STATUS = "smtp_status"
FIELDS = (BOUNCE, SMTP_STATUS)
"""Names in metadata that count as the event's fields, and are checked like them."""

REPEATED = Recorded(None, None)
"""The result for an event that was recorded before."""


class NewEvent(NamedTuple):
    """A row for the ledger, as an orphan, and the keys that its delivery is found by."""

    entry: Entry
    keys: Keys


def record_webhook(
    connection: sa.Connection | Session,
    *,
    tenant_id: str | None = None,
    provider: str,
    events: Iterable[WebhookEvent],
    strict: bool = False,
) -> list[Recorded]:
    """Record a webhook's events: each is stored with its delivery, or kept open until the delivery exists.

    An event that the provider repeats is recorded once. After your commit, call `broadcast`.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        tenant_id: The tenant that the webhook belongs to; None is `MAILGLASS_TENANT`.
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        events: The webhook's events, in its order.
        strict: Leave out every string in metadata that looks like an e-mail address.

    Returns:
        The result for each event, in the same order.

    Raises:
        InvalidEventError: A value cannot be recorded; nothing was written.
        ConfigurationError: *connection* is in autocommit mode.
        MailglassReconcileError: The database refused; nothing was written. Your transaction can continue, except after
            an error that concerns all of it, such as a lost connection or a serialization failure.
        TypeError: *connection* is something else.
    """
    runtime.load_imports()
    settings = runtime.get_settings()
    tenant = validation.name("tenant_id", settings.tenant if tenant_id is None else tenant_id)
    new_events = validate_events(tenant, provider, events, strict)
    with (
        failures.count_failure(f"a webhook of {sanitize(provider)}"),
        use_caller_transaction(connection, settings) as tx,
    ):
        recorded = _record(tx, new_events)
    return after_commit.attach_actions(connection, recorded)


def _record(tx: Transaction, events: Sequence[NewEvent]) -> list[Recorded]:
    """Append the new events, each with the delivery that the rule chooses, and return the result for each event."""
    distinct: dict[str | None, NewEvent] = {}
    for event in events:
        distinct.setdefault(event.entry.idempotency_key, event)
    if not distinct:
        return []
    new_events = list(distinct.values())
    matches = match_events(
        tx.reading, [EventKeys(event.entry.id, event.entry.tenant_id, event.keys) for event in new_events]
    )
    pairs = list(zip(new_events, matches, strict=True))
    entries = [event.entry._replace(delivery_id=result.delivery_id) for event, result in pairs]
    recorded = ledger.append_webhook(tx, entries, [StoredKeys(event.keys, result.state) for event, result in pairs])
    look_ups = [
        LookUp(event.entry.tenant_id, event_id=event.entry.id)
        for event in new_events
        if event.keys.candidate_ids and recorded.get(event.entry.id, event) is None
    ]
    action = make_action(filter(None, recorded.values()), look_ups)
    states = {event.entry.id: result.state for event, result in pairs}
    results = {
        id_: Recorded(UUID(id_), UUID(attached.delivery_id), action)
        if attached
        else Recorded(UUID(id_), None, action, states[id_])
        for id_, attached in recorded.items()
    }
    return [results.get(event.entry.id, REPEATED) for event in events]


def validate_events(tenant_id: str, provider: str, events: Iterable[WebhookEvent], strict: bool) -> list[NewEvent]:
    """Validate and repair a webhook's events, and return them in their order; equal ones have the same key."""
    provider = validation.provider("provider", provider)
    if not isinstance(events, Iterable):
        raise InvalidEventError("events must be a list of WebhookEvent")
    events = list(events)
    numbers = _Numbers()
    new_events = []
    for index, (event, id_) in enumerate(zip(events, uuid7s(len(events)), strict=True)):
        at = f"events[{index}]"
        if not isinstance(event, WebhookEvent):
            raise InvalidEventError(f"{at} must be a WebhookEvent")
        type_ = validation.event_type(f"{at}.type", event.type)
        provider_event_id = validation.event_id(f"{at}.provider_event_id", event.provider_event_id)
        entry, keys = _validate(at, event, id_, type_, provider_event_id, tenant_id, provider, strict)
        number = numbers.number_of(event, provider_event_id, type_)
        key = idempotency_key(tenant_id, provider, provider_event_id, type_, number)
        new_events.append(NewEvent(entry._replace(idempotency_key=key), keys))
    return new_events


class _Numbers:
    """Numbers the different events of a call that share provider event id and type; nearly all have theirs alone."""

    def __init__(self) -> None:
        self._first_events: dict[tuple[str, str], WebhookEvent] = {}
        self._numbers: dict[tuple[str, str], dict[str, int]] = {}

    def number_of(self, event: WebhookEvent, provider_event_id: str, type_: str) -> int:
        """Return an event's number, from 0; events that are equal in every field have the same."""
        first_event = self._first_events.setdefault((provider_event_id, type_), event)
        if first_event is event:
            return 0
        numbers = self._numbers.setdefault((provider_event_id, type_), {_identity(first_event): 0})
        return numbers.setdefault(_identity(event), len(numbers))


def _identity(event: WebhookEvent) -> str:
    return json.dumps([getattr(event, field.name) for field in fields(event)], sort_keys=True, default=str)


def idempotency_key(tenant_id: str, provider: str, provider_event_id: str, type_: str, number: int) -> str:
    """Return the key under which an event is recorded once: a digest, which names no person.

    Several different events of one call may share id and type: *number* says, from 0, which of them it is.
    """
    identity = json.dumps([tenant_id, provider, provider_event_id, type_, number])
    return f"webhook:{hashlib.sha256(identity.encode()).hexdigest()}"


def _validate(
    at: str,
    event: WebhookEvent,
    id_: str,
    type_: str,
    provider_event_id: str,
    tenant_id: str,
    provider: str,
    strict: bool,
) -> tuple[Entry, Keys]:
    """Validate an event; return its row for the ledger, still without an idempotency key, and its keys."""
    message_id = validation.message_id(f"{at}.message_id", event.message_id)
    callers_metadata = validation.metadata(f"{at}.metadata", event.metadata)
    other_metadata, recipient = _split(callers_metadata)
    recipient = validation.recipient(f"{at}.recipient", event.recipient) or recipient
    normalized = normalize_address(recipient) if recipient else None
    if message_id is not None and normalize_address(message_id) == normalized:
        message_id = None  # the ledger can never be erased
    own = {"provider_event_id": _make_storable(provider_event_id)}
    metadata: dict[str, Any] = {
        **(validation.remove_addresses(other_metadata | own) if strict else other_metadata | own),
        "provider": provider,
        provider_rules.rule_of(provider).stored_under: message_id,
        **_smtp_fields(at, event, callers_metadata, normalized),
        **({"recipient_known": True} if recipient else {}),
    }
    entry = Entry(
        id=id_,
        tenant_id=tenant_id,
        delivery_id=None,
        type=type_,
        occurred_at=validation.utc(f"{at}.occurred_at", event.occurred_at),
        idempotency_key=None,
        reject_reason=validation.reject_reason(f"{at}.reject_reason", event.reject_reason),
        metadata=metadata,
        needs_reconciliation=True,
    )
    keys = keys_of(Document(metadata))
    return entry, keys._replace(recipient=normalized, lost=False) if normalized else keys


def _make_storable(provider_event_id: str) -> str:
    """Return a provider's id of an event as the ledger keeps it: a digest if it looks like an address."""
    text = validation.replace_unstorable(provider_event_id)
    return hashlib.sha256(text.encode()).hexdigest() if contains_address(text) else text[:MAX_ID_LENGTH]


def _smtp_fields(
    at: str, event: WebhookEvent, callers_metadata: Mapping[str, Any], recipient: str | None
) -> dict[str, str]:
    """Return the kind of a bounce, the SMTP codes and the SMTP message id, unless it is the normalized *recipient*.

    The event's fields override its metadata.
    """
    smtp_message_id = validation.message_id(f"{at}.smtp_message_id", event.smtp_message_id)
    if smtp_message_id is not None and normalize_address(smtp_message_id) == recipient:
        smtp_message_id = None
    bounce = validation.bounce(f"{at}.metadata['bounce']", callers_metadata.get(BOUNCE))
    status = smtp_status(callers_metadata.get(SMTP_STATUS))
    values = {
        BOUNCE: validation.bounce(f"{at}.bounce", event.bounce) or bounce,
        SMTP_STATUS: validation.smtp_status(f"{at}.smtp_status", event.smtp_status) or status,
        SMTP_MESSAGE_ID: smtp_message_id,
    }
    return {name: value for name, value in values.items() if value}


def _split(callers_metadata: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the caller's metadata without reserved names, and the address under one of them, as a sweep reads it."""
    other_fields, reserved = {}, {}
    for name, value in callers_metadata.items():
        normalized_name = name.strip().lower()
        if normalized_name not in RESERVED and name not in FIELDS:
            other_fields[name] = value
        elif isinstance(value, str):
            reserved[normalized_name] = value
    for name in ADDRESS_KEYS:
        recipient = validation.recipient(name, reserved.get(name))
        if recipient:
            return other_fields, recipient
    return other_fields, None
