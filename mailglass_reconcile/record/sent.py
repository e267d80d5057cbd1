"""Sends as they will be written: checked, and with their key; nothing here reads or writes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import validation
from mailglass_reconcile.rules import addresses
from mailglass_reconcile.store import ledger
from mailglass_reconcile.store.ledger import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a provider's API has answered for one recipient.

    Attributes:
        recipient: The address, with or without a display name; the address alone is stored.
        message_id: The id that the API has answered; None only if the type is `failed` or `rejected`.
        type: `dispatched`; or `failed` or `rejected`, after which nothing more is expected.
        occurred_at: When, with a time zone; None is now.
    """

    recipient: str = field(repr=False)
    message_id: str | int | None
    type: str = "dispatched"
    occurred_at: dt.datetime | None = None


class Draft(NamedTuple):
    """A delivery and its first event; the delivery's id stands in both."""

    entry: Entry
    delivery_id: str
    recipient: str
    message_id: str | None

    @property
    def identity(self) -> str:
        """What it shares with the same send, given again."""
        return self.entry.idempotency_key or self.entry.id


def check(tenant_id: str, provider: str, sent: Iterable[Sent]) -> list[Draft]:
    """Check what a provider's API has answered, and return it in its order; *provider* in its canonical spelling.

    Raises:
        InvalidEventError: One cannot be recorded.
    """
    if not isinstance(sent, Iterable):
        raise InvalidEventError("sent must be a list of Sent")
    checked = []
    for index, one in enumerate(sent):
        if not isinstance(one, Sent):
            raise InvalidEventError(f"sent[{index}] must be a Sent")
        checked.append(_draft(f"sent[{index}]", one, tenant_id, provider))
    return checked


def _draft(at: str, one: Sent, tenant_id: str, provider: str) -> Draft:
    kind = validation.sent_type(f"{at}.type", one.type)
    message_id = validation.sent_id(f"{at}.message_id", one.message_id, needed=kind == "dispatched")
    recipient = validation.recipient(f"{at}.recipient", one.recipient)
    if recipient is None:
        raise InvalidEventError(f"{at}.recipient must be an address")
    delivery_id = ledger.uuid7()
    entry = Entry(
        id=ledger.uuid7(),
        tenant_id=tenant_id,
        delivery_id=delivery_id,
        type=kind,
        occurred_at=validation.utc(
            f"{at}.occurred_at", dt.datetime.now(dt.UTC) if one.occurred_at is None else one.occurred_at
        ),
        idempotency_key=_key(tenant_id, provider, message_id, recipient),
        reject_reason=None,
        metadata={"provider": provider, "provider_message_id": message_id},
        needs_reconciliation=False,
    )
    return Draft(entry, delivery_id, recipient, message_id)


def _key(tenant_id: str, provider: str, message_id: str | None, recipient: str) -> str | None:
    """Return the key under which a send is recorded once, a digest, which names nobody; None if it has no id."""
    if message_id is None:
        return None
    identity = json.dumps([tenant_id, provider, message_id, addresses.address(recipient)])
    return f"send:{hashlib.sha256(identity.encode()).hexdigest()}"
