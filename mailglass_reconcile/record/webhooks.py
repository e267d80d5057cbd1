"""Writing the events of a webhook: each to its delivery, or as an orphan that a sweep will link.

Everything happens in the caller's transaction. No address goes into the ledger, from
which nothing can be erased: a recipient is kept with the open orphan, and is erased with it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import after_commit, failures, validation
from mailglass_reconcile.record.after_commit import Recheck, Recorded, Step
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.addresses import address
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.rules.matching import MAX_ID_LENGTH, Document, Keys, keys_of
from mailglass_reconcile.rules.providers import SMTP_MESSAGE_ID
from mailglass_reconcile.rules.smtp import smtp_status
from mailglass_reconcile.store import ledger
from mailglass_reconcile.store.caller_transaction import borrowed
from mailglass_reconcile.store.database import Transaction, uuid7
from mailglass_reconcile.store.ledger import Entry, LinkedEvent
from mailglass_reconcile.store.stored_keys import Known
from mailglass_reconcile.sweep.matcher import Event, match

ADDRESS_KEYS = ("recipient", "email")
"""Top-level names under which providers put the recipient's address, in any case."""

RESERVED = (*ADDRESS_KEYS, "recipient_known", "provider_message_id")
"""Top-level names of metadata that sweeps read: a caller's own values under them are left out."""

BOUNCE = "bounce"
SMTP_STATUS = "smtp_status"
FIELDS = (BOUNCE, SMTP_STATUS)
"""Names in metadata that count as the event's fields, and are checked like them."""

REPEATED = Recorded(None, None)
"""What becomes of an event that was recorded before."""


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

    An event that the provider repeats is recorded once. After your commit, call `broadcast`; a Session on an engine
    does that itself.

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
    checked = check(tenant, provider, events, strict)
    with failures.counted(f"a webhook of {sanitize(provider)}"), borrowed(connection, settings) as tx:
        recorded = _record(tx, checked)
    return after_commit.returned(connection, recorded)


def _record(tx: Transaction, checked: Sequence[NewEvent]) -> list[Recorded]:
    """Append what is new, each with the delivery that the rule finds, and return the result for each of *checked*."""
    first: dict[str | None, NewEvent] = {}
    for one in checked:
        first.setdefault(one.entry.idempotency_key, one)
    if not first:
        return []
    new = list(first.values())
    verdicts = match(tx, [Event(one.entry.id, one.entry.tenant_id, one.keys) for one in new])
    entries = [one.entry._replace(delivery_id=verdict.delivery_id) for one, verdict in zip(new, verdicts, strict=True)]
    known = [Known(one.keys, verdict.state) for one, verdict in zip(new, verdicts, strict=True)]
    recorded = ledger.append_webhook(tx, entries, known)
    return [_result(one, recorded) for one in checked]


def _result(event: NewEvent, recorded: Mapping[str, LinkedEvent | None]) -> Recorded:
    id_ = event.entry.id
    if id_ not in recorded:
        return REPEATED
    attached = recorded[id_]
    if attached:
        return Recorded(UUID(id_), UUID(attached.delivery_id), Step(events=(attached,)))
    recheck = Recheck(event.entry.tenant_id, event_ids=(id_,)) if event.keys.candidate_ids else None
    return Recorded(UUID(id_), None, Step(recheck=recheck) if recheck else None)


def check(tenant_id: str, provider: str, events: Iterable[WebhookEvent], strict: bool) -> list[NewEvent]:
    """Check and repair a webhook's events, and return them in their order; equal ones have the same key."""
    provider = validation.provider("provider", provider)
    if not isinstance(events, Iterable):
        raise InvalidEventError("events must be a list of WebhookEvent")
    different: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    checked = []
    for index, event in enumerate(events):
        at = f"events[{index}]"
        if not isinstance(event, WebhookEvent):
            raise InvalidEventError(f"{at} must be a WebhookEvent")
        kind = validation.known_type(f"{at}.type", event.type)
        event_id = validation.event_id(f"{at}.provider_event_id", event.provider_event_id)
        one = _checked(at, event, kind, tenant_id, provider, strict)
        numbers = different[event_id, kind]
        number = numbers.setdefault(_identity(event), len(numbers))
        key = idempotency_key(tenant_id, provider, event_id, kind, number)
        checked.append(one._replace(entry=one.entry._replace(idempotency_key=key)))
    return checked


def _identity(event: WebhookEvent) -> str:
    return json.dumps([getattr(event, field.name) for field in fields(event)], sort_keys=True, default=str)


def idempotency_key(tenant_id: str, provider: str, provider_event_id: str, kind: str, number: int) -> str:
    """Return the key under which an event is recorded once: a digest, which names no person.

    Several different events of one call may share id and type: *number* says, from 0, which of them it is.
    """
    identity = json.dumps([tenant_id, provider, provider_event_id, kind, number])
    return f"webhook:{hashlib.sha256(identity.encode()).hexdigest()}"


def _checked(at: str, event: WebhookEvent, kind: str, tenant_id: str, provider: str, strict: bool) -> NewEvent:
    """Return a row for the ledger; its key depends on what else is recorded with it."""
    message_id = validation.message_id(f"{at}.message_id", event.message_id)
    given = validation.metadata(f"{at}.metadata", event.metadata)
    kept, recipient = _split(given)
    recipient = validation.recipient(f"{at}.recipient", event.recipient) or recipient
    own = {"provider_event_id": validation.storable(validation.plain(event.provider_event_id).strip())[:MAX_ID_LENGTH]}
    metadata: dict[str, Any] = {
        **(validation.without_addresses(kept | own) if strict else kept | own),
        "provider": provider,
        providers.rule_of(provider).stored_under: message_id,
        **_of_smtp(at, event, given),
        **({"recipient_known": True} if recipient else {}),
    }
    entry = Entry(
        id=uuid7(),
        tenant_id=tenant_id,
        delivery_id=None,
        type=kind,
        occurred_at=validation.utc(f"{at}.occurred_at", event.occurred_at),
        idempotency_key=None,
        reject_reason=validation.reject_reason(f"{at}.reject_reason", event.reject_reason),
        metadata=metadata,
        needs_reconciliation=True,
    )
    keys = keys_of(Document(metadata))
    return NewEvent(entry, keys._replace(recipient=address(recipient), lost=False) if recipient else keys)


def _of_smtp(at: str, event: WebhookEvent, given: Mapping[str, Any]) -> dict[str, str]:
    """Return how a message bounced, the codes of SMTP and its id over SMTP; fields go before the caller's metadata."""
    bounce = validation.bounce(f"{at}.metadata['bounce']", given.get(BOUNCE))
    status = smtp_status(given.get(SMTP_STATUS))
    told = {
        BOUNCE: validation.bounce(f"{at}.bounce", event.bounce) or bounce,
        SMTP_STATUS: validation.smtp_status(f"{at}.smtp_status", event.smtp_status) or status,
        SMTP_MESSAGE_ID: validation.message_id(f"{at}.smtp_message_id", event.smtp_message_id),
    }
    return {name: value for name, value in told.items() if value}


def _split(given: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return what is kept of a caller's metadata, and the address in it, as a sweep would read it."""
    kept, reserved = {}, {}
    for name, value in given.items():
        bare = name.strip().lower()
        if bare not in RESERVED and name not in FIELDS:
            kept[name] = value
        elif isinstance(value, str):
            reserved[bare] = value
    for name in ADDRESS_KEYS:
        recipient = validation.recipient(name, reserved.get(name))
        if recipient:
            return kept, recipient
    return kept, None
