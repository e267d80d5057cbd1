"""Storing sends: for each that is new, its first event and its delivery, in one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mailglass_reconcile.store.database import Function, Transaction, array_literal
from mailglass_reconcile.store.ledger import Entry

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
        "several",
        "tenant",
        "anyway",
        "spellings",
        "provider",
        "mailable",
        "stream",
        "metadata",
    ),
    catches=True,
)


class Campaign(NamedTuple):
    """What the deliveries of one call have in common; `spellings` are those of the provider, its own one first."""

    tenant_id: str
    spellings: tuple[str, ...]
    mailable: str
    stream: str
    metadata: str


class New(NamedTuple):
    """A delivery to be stored, and its first event, which names it.

    `shared` if its message id has other recipients in the same call.
    """

    entry: Entry
    delivery_id: str
    recipient: str
    message_id: str | None
    shared: bool


class Stored(NamedTuple):
    """What storing found: the deliveries of what was recorded before, by key; and whether events may wait for one."""

    known: Mapping[str, str]
    may_be_open: bool


def store(tx: Transaction, campaign: Campaign, sent: Sequence[New]) -> Stored:
    """Store what is new of *sent*, each delivery with the projection of its event, and hand the events to handlers."""
    parameters = {
        "tenant": campaign.tenant_id,
        "mailable": campaign.mailable,
        "stream": campaign.stream,
        "metadata": campaign.metadata,
        "spellings": array_literal(campaign.spellings),
        "provider": campaign.spellings[0],
        "event_ids": array_literal(one.entry.id for one in sent),
        "delivery_ids": array_literal(one.delivery_id for one in sent),
        "types": array_literal(one.entry.type for one in sent),
        "times": array_literal(one.entry.occurred_at for one in sent),
        "keys": array_literal(one.entry.idempotency_key for one in sent),
        "entries": array_literal(json.dumps(one.entry.metadata) for one in sent),
        "recipients": array_literal(one.recipient for one in sent),
        "domains": array_literal(one.recipient.rpartition("@")[2].lower() for one in sent),
        "message_ids": array_literal(one.message_id for one in sent),
        "several": array_literal(str(one.shared) for one in sent),
        "anyway": "false",
    }
    rows = tx.call(STORE, parameters)
    may_be_open = any(is_open for _, _, is_open in rows)
    if may_be_open:
        tx.protect()
        rows = tx.call(STORE, {**parameters, "anyway": "true"})
    known = {key: delivery_id for key, delivery_id, is_open in rows if not is_open}
    if None in known.values():  # another transaction committed one while the statement waited for it: now it is seen
        known |= {key: id_ for key, id_, is_open in tx.call(STORE, {**parameters, "anyway": "true"}) if not is_open}
    return Stored(known, may_be_open)
