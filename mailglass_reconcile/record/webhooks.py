"""Writing the events of a webhook: each to its delivery, or as an orphan that a sweep will link.

Everything happens in the caller's transaction, under a savepoint of ours. No address goes into the ledger, which can
never be erased: a recipient is kept with the open orphan, and is erased with it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import InvalidEventError, database_errors
from mailglass_reconcile.projector import Attached
from mailglass_reconcile.pubsub import Message
from mailglass_reconcile.record import sessions, storing, validation
from mailglass_reconcile.store import ledger, open_orphans
from mailglass_reconcile.store.database import Transaction, borrowed
from mailglass_reconcile.store.ledger import Entry
from mailglass_reconcile.store.model import Keys, Report
from mailglass_reconcile.sweep import keys, match, providers

ADDRESS_KEYS = ("recipient", "email")
"""Top-level names under which providers put the recipient's address, in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """One event of a provider's webhook.

    Attributes:
        type: Anymail's name for it: `delivered`, `bounced`, `opened`, …; `docs/recording.md` lists all.
        occurred_at: When the provider says it happened, with a time zone.
        provider_event_id: The provider's id of this event, or of the webhook that carried it.
        message_id: The provider's id of the message, as the webhook has it.
        recipient: Whom it is about, if known, with or without a display name. It tells deliveries of one message
            apart and is not put into the ledger.
        reject_reason: `invalid`, `bounced`, `timed_out`, `blocked`, `spam`, `unsubscribed`, `other`, or None.
        metadata: What else to keep, as JSON of at most 65,536 bytes. `recipient` and `email` are left out; everything
            else is stored as given, and can never be erased.
    """

    type: str
    occurred_at: dt.datetime
    provider_event_id: str | int
    message_id: str | int | None
    recipient: str | None = field(default=None, repr=False)
    reject_reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an event.

    Attributes:
        event_id: Its id, or None if it was recorded before.
        delivery_id: Its delivery, or None if it is an orphan.
        message: What `broadcast` is to publish; None if there is nothing, or if a Session publishes it by itself.
    """

    event_id: UUID | None
    delivery_id: UUID | None
    message: Message | None = field(default=None, repr=False)


class _Prepared(NamedTuple):
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
    """Record a webhook's events: each goes to its delivery, which is brought up to date, or stays an orphan.

    A delivery is found by the same rule as by a sweep. An event that comes again, in whatever batch, is recorded once.
    What was attached is broadcast after the commit: by itself with a Session, by `broadcast` with a Connection.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which decides whether any of it is kept. Its
            settings are as before afterwards, also after an error.
        tenant_id: The tenant that the webhook belongs to; None is `MAILGLASS_TENANT`.
        provider: The provider's name, in any known spelling; it is stored in one.
        events: The webhook's events, in its order.
        strict: Leave out of the ledger every text in metadata that looks like an e-mail address.

    Returns:
        What became of each, in the same order.

    Raises:
        InvalidEventError: An event, the tenant or the provider cannot be recorded; nothing was written.
        ConfigurationError: *connection* is in autocommit mode.
        MailglassReconcileError: The database refused; nothing was written, and the caller's own work is untouched.
        TypeError: *connection* is something else.
    """
    settings = runtime.get_settings()
    tenant = validation.name("tenant_id", settings.tenant if tenant_id is None else tenant_id)
    prepared = _prepare(tenant, _canonical(provider), events, strict)
    with database_errors(), borrowed(sessions.connection_of(connection), settings) as tx:
        entries = _attach(tx, tenant, prepared)
        inserted = ledger.append(tx, entries)
        _remember(tx, tenant, [(e, p.keys) for e, p in zip(entries, prepared, strict=True) if e.id in inserted])
    recorded = [_outcome(entry) if entry.id in inserted else Recorded(None, None) for entry in entries]
    session = sessions.session_of(connection)
    if session is None:
        return recorded
    sessions.publish_after_commit(session, _messages(recorded))
    return [replace(each, message=None) for each in recorded]


def broadcast(recorded: Iterable[Recorded]) -> None:
    """Tell subscribers of the events that `record_webhook` attached on a plain Connection; call it after the commit.

    A Redis that does not answer costs at most a second and raises nothing. With a Session there is nothing left to
    do: it broadcasts by itself when it has committed.

    Args:
        recorded: What `record_webhook` returned.

    Raises:
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
    """
    sessions.publish(_messages(recorded))


def idempotency_key(tenant_id: str, provider: str, provider_event_id: str, number: int) -> str:
    """Return the key under which an event is recorded once: a digest, which names nobody.

    Args:
        tenant_id: The tenant.
        provider: The provider's canonical name.
        provider_event_id: The provider's id of the event.
        number: Which of the events of one call that share this id it is, from 0.
    """
    identity = json.dumps([tenant_id, provider, provider_event_id, number])
    return f"webhook:{hashlib.sha256(identity.encode()).hexdigest()}"


def _messages(recorded: Iterable[Recorded]) -> list[Message]:
    return [each.message for each in recorded if each.message]


def _canonical(provider: object) -> str:
    return providers.canonical(validation.name("provider", provider.strip() if isinstance(provider, str) else provider))


def _prepare(tenant_id: str, provider: str, events: Iterable[WebhookEvent], strict: bool) -> list[_Prepared]:
    """Check and repair all events; nothing has been written yet."""
    if not isinstance(events, Iterable):
        raise InvalidEventError("events must be a list of WebhookEvent")
    seen: Counter[str] = Counter()
    prepared = []
    for index, event in enumerate(events):
        at = f"events[{index}]"
        if not isinstance(event, WebhookEvent):
            raise InvalidEventError(f"{at} must be a WebhookEvent")
        event_id = validation.event_id(f"{at}.provider_event_id", event.provider_event_id)
        key = idempotency_key(tenant_id, provider, event_id, seen[event_id])
        seen[event_id] += 1
        prepared.append(_prepared(at, event, tenant_id, provider, key, strict))
    return prepared


def _prepared(at: str, event: WebhookEvent, tenant_id: str, provider: str, key: str, strict: bool) -> _Prepared:
    message_id = validation.message_id(f"{at}.message_id", event.message_id)
    given = storing.metadata(f"{at}.metadata", event.metadata)
    recipient = validation.recipient(f"{at}.recipient", event.recipient) or _recipient_in(given)
    own = {"provider_event_id": storing.storable(str(event.provider_event_id).strip())[: keys.MAX_ID_LENGTH]}
    kept = {name: value for name, value in given.items() if _bare(name) not in (*ADDRESS_KEYS, "recipient_known")}
    entry = Entry(
        id=ledger.uuid7(),
        tenant_id=tenant_id,
        delivery_id=None,
        type=validation.known_type(f"{at}.type", event.type),
        occurred_at=validation.utc(f"{at}.occurred_at", event.occurred_at),
        idempotency_key=key,
        reject_reason=validation.reject_reason(f"{at}.reject_reason", event.reject_reason),
        metadata={
            **(storing.without_addresses({**kept, **own}) if strict else {**kept, **own}),
            "provider": provider,
            "provider_message_id": message_id,
            **({"recipient_known": True} if recipient else {}),
        },
        needs_reconciliation=True,
    )
    return _Prepared(entry, keys.keys_of_text(provider, message_id, recipient))


def _bare(name: str) -> str:
    return name.strip().lower()


def _recipient_in(metadata: Mapping[str, Any]) -> str | None:
    """Return the address that the caller left in *metadata*, as a sweep would read it."""
    by_name = {_bare(name): value for name, value in metadata.items() if isinstance(value, str)}
    return next(filter(None, (validation.recipient(name, by_name.get(name)) for name in ADDRESS_KEYS)), None)


def _attach(tx: Transaction, tenant_id: str, prepared: Sequence[_Prepared]) -> list[Entry]:
    """Decide for all events, then lock their deliveries; one that is gone by then leaves an orphan."""
    found = [match.decide(tx, tenant_id, wanted).delivery_id for _, wanted in prepared]
    locked = projector.lock(tx, {delivery_id for delivery_id in found if delivery_id})
    return [
        entry._replace(delivery_id=delivery_id, needs_reconciliation=False) if delivery_id in locked else entry
        for (entry, _), delivery_id in zip(prepared, found, strict=True)
    ]


def _remember(tx: Transaction, tenant_id: str, recorded: Sequence[tuple[Entry, Keys]]) -> None:
    """Project the events that have a delivery, and keep the others' keys with the open orphan."""
    for entry, wanted in recorded:
        if entry.delivery_id is None:
            open_orphans.remember(tx, entry.id, tenant_id, wanted)
    attached = [(e.delivery_id, e.type, e.occurred_at) for e, _ in recorded if e.delivery_id is not None]
    if attached:
        projector.project(tx, [Report(*each, arrived_at=projector.NOW) for each in attached])


def _outcome(entry: Entry) -> Recorded:
    if entry.delivery_id is None:
        return Recorded(UUID(entry.id), None)
    told = Attached(entry.id, entry.delivery_id, entry.tenant_id, entry.type, entry.occurred_at)
    message = (entry.tenant_id, entry.delivery_id, projector.payload(told))
    return Recorded(UUID(entry.id), UUID(entry.delivery_id), message)
