"""A webhook's events as they will be written: checked, repaired, and with their key; nothing here reads or writes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import storing, validation
from mailglass_reconcile.rules import keys
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.keys import Keys
from mailglass_reconcile.store import ledger
from mailglass_reconcile.store.ledger import Entry

ADDRESS_KEYS = ("recipient", "email")
"""Top-level names under which providers put the recipient's address, in any case."""


class Draft(NamedTuple):
    """A row for the ledger, as an orphan, and the keys that its delivery is found by."""

    entry: Entry
    keys: Keys


def draft(tenant_id: str, provider: str, events: Iterable[WebhookEvent], strict: bool) -> list[Draft]:
    """Check and repair a webhook's events, and return them in their order.

    Raises:
        InvalidEventError: The provider or an event cannot be recorded.
    """
    provider = validation.provider("provider", provider)
    if not isinstance(events, Iterable):
        raise InvalidEventError("events must be a list of WebhookEvent")
    seen: Counter[str] = Counter()
    drafts = []
    for index, event in enumerate(events):
        at = f"events[{index}]"
        if not isinstance(event, WebhookEvent):
            raise InvalidEventError(f"{at} must be a WebhookEvent")
        event_id = validation.event_id(f"{at}.provider_event_id", event.provider_event_id)
        key = idempotency_key(tenant_id, provider, event_id, seen[event_id])
        seen[event_id] += 1
        drafts.append(_draft(at, event, tenant_id, provider, key, strict))
    return drafts


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


def _draft(at: str, event: WebhookEvent, tenant_id: str, provider: str, key: str, strict: bool) -> Draft:
    message_id = validation.message_id(f"{at}.message_id", event.message_id)
    given = storing.metadata(f"{at}.metadata", event.metadata)
    recipient = validation.recipient(f"{at}.recipient", event.recipient) or _recipient_in(given)
    own = {"provider_event_id": storing.storable(storing.plain(event.provider_event_id).strip())[: keys.MAX_ID_LENGTH]}
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
    return Draft(entry, keys.keys_of_text(provider, message_id, recipient))


def _bare(name: str) -> str:
    return name.strip().lower()


def _recipient_in(metadata: Mapping[str, Any]) -> str | None:
    """Return the address that the caller left in *metadata*, as a sweep would read it."""
    by_name = {_bare(name): value for name, value in metadata.items() if isinstance(value, str)}
    return next(filter(None, (validation.recipient(name, by_name.get(name)) for name in ADDRESS_KEYS)), None)
