"""Storing sends: for each that is new, its first event and its delivery, in one statement."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Function, Transaction, array_literal
from mailglass_reconcile.store.tables.ledger import Entry

STORE = Function(
    "mailglass_reconcile_store_sends_v1",
    (
        "event_ids",
        "delivery_ids",
        "types",
        "times",
        "keys",
        "entries",
        "recipients",
        "domains",
        "message_ids",
        "shared",
        "tenant",
        "even_if_open",
        "spellings",
        "provider",
        "mailable",
        "stream",
        "metadata",
    ),
    catches=True,
)


class Campaign(NamedTuple):
    """The fields shared by all deliveries of one call; `spellings` are the provider's, its own name first."""

    tenant_id: str
    spellings: tuple[str, ...]
    mailable: str
    stream: str
    metadata: str


class NewDelivery(NamedTuple):
    """A delivery to be stored, and its first event, which names it."""

    entry: Entry
    delivery_id: str
    recipient: str
    message_id: str | None

    @property
    def identity(self) -> str:
        """The key that it shares with the same send, recorded again."""
        return str(self.entry.idempotency_key)


class StoredSends(NamedTuple):
    """The deliveries recorded before, by idempotency key; and whether open events may wait for a new one."""

    delivery_ids: Mapping[str, str]
    may_be_open: bool


def store(tx: Transaction, campaign: Campaign, new_deliveries: Sequence[NewDelivery]) -> StoredSends:
    """Store the deliveries of different sends, projected, with their events, and enqueue the events for handlers."""
    recipients = Counter[str | None](
        delivery.message_id for delivery in new_deliveries if delivery.message_id is not None
    )
    parameters = {
        "tenant": campaign.tenant_id,
        "mailable": campaign.mailable,
        "stream": campaign.stream,
        "metadata": campaign.metadata,
        "spellings": array_literal(campaign.spellings),
        "provider": campaign.spellings[0],
        "event_ids": array_literal(delivery.entry.id for delivery in new_deliveries),
        "delivery_ids": array_literal(delivery.delivery_id for delivery in new_deliveries),
        "types": array_literal(delivery.entry.type for delivery in new_deliveries),
        "times": array_literal(delivery.entry.occurred_at for delivery in new_deliveries),
        "keys": array_literal(delivery.identity for delivery in new_deliveries),
        "entries": array_literal(json.dumps(delivery.entry.metadata) for delivery in new_deliveries),
        "recipients": array_literal(delivery.recipient for delivery in new_deliveries),
        "domains": array_literal(delivery.recipient.rpartition("@")[2].lower() for delivery in new_deliveries),
        "message_ids": array_literal(delivery.message_id for delivery in new_deliveries),
        "shared": array_literal(str(recipients[delivery.message_id] > 1) for delivery in new_deliveries),
        "even_if_open": "false",
    }
    rows = tx.call(STORE, parameters)
    may_be_open = any(is_open for _, _, is_open in rows)
    if may_be_open:
        tx.begin_savepoint()
        rows = tx.call(STORE, {**parameters, "even_if_open": "true"})
    delivery_ids = {key: delivery_id for key, delivery_id, is_open in rows if not is_open}
    if None in delivery_ids.values():  # another transaction committed one meanwhile: a new statement sees it
        rows = tx.call(STORE, {**parameters, "even_if_open": "true"})
        delivery_ids |= {key: delivery_id for key, delivery_id, is_open in rows if not is_open}
    return StoredSends(delivery_ids, may_be_open)
