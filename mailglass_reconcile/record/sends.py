"""Record a send: one delivery per recipient, to which the events that came earlier are linked.

Everything happens in the caller's transaction. A send is recorded once: the idempotency key of its first event is made
of tenant, provider, message id and address.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.linking.link import ExtraMetadata, Pairs, link_in
from mailglass_reconcile.linking.matcher import match_orphans, unchecked_metadata
from mailglass_reconcile.record import after_commit, failures, validation
from mailglass_reconcile.record.after_commit import LookUp, RecordedDelivery, make_action
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import normalize_address
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import Transaction, uuid7
from mailglass_reconcile.store.tables import open_orphans, sends
from mailglass_reconcile.store.tables.ledger import NOW, ClaimedEvent, Entry
from mailglass_reconcile.store.tables.sends import Campaign, NewDelivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The result of a provider's API for one recipient.

    Attributes:
        recipient: One address of at most 1,000 characters, alone or as in `Ada <…>`; only the address is stored.
        message_id: The message id that the API returned; None only if the type is `failed` or `rejected`.
        type: `failed` or `rejected` if the provider refused the recipient.
        occurred_at: The time, with a time zone; None is now.
    """

    recipient: str = field(repr=False)
    message_id: str | int | None
    type: Literal["dispatched", "failed", "rejected"] = "dispatched"
    occurred_at: dt.datetime | None = None
    _identity: str = field(init=False, repr=False, compare=False, default_factory=uuid7)
    """Identity of a send without a message id, if the same object is recorded again."""


def record_send(
    connection: sa.Connection | Session,
    *,
    provider: str,
    sent: Iterable[Sent],
    tenant_id: str | None = None,
    mailable: str = "python",
    stream: str = "transactional",
    metadata: Mapping[str, Any] | None = None,
) -> list[RecordedDelivery]:
    """Record a send after the provider's API has returned: one delivery per recipient, with a `dispatched` event.

    Events that came earlier are linked in the same transaction. After your commit, call `broadcast`.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        sent: The API's result for each recipient. The same send is recorded once: same tenant, provider, message id and
            address (without case and display name). Without a message id, each `Sent` is a new delivery.
        tenant_id: The tenant that sends; None is `MAILGLASS_TENANT`.
        mailable: The kind of message, such as `Welcome`.
        stream: `transactional`, `operational` or `bulk`.
        metadata: Further data for each delivery, as JSON of at most 65,536 bytes.

    Returns:
        The delivery of each recipient, in the same order.

    Raises:
        InvalidEventError: A value cannot be recorded; nothing was written.
        ConfigurationError: *connection* is in autocommit mode.
        MailglassReconcileError: The database refused; nothing was written. Your transaction can continue, except after
            an error that concerns all of it, such as a lost connection or a serialization failure.
        TypeError: *connection* is something else.
    """
    runtime.load_imports()
    settings = runtime.get_settings()
    campaign = Campaign(
        validation.name("tenant_id", settings.tenant if tenant_id is None else tenant_id),
        provider_rules.spellings(validation.provider("provider", provider)),
        validation.name("mailable", mailable),
        validation.stream("stream", stream),
        json.dumps(validation.metadata("metadata", {} if metadata is None else metadata)),
    )
    new_sends = validate_sends(campaign.tenant_id, campaign.spellings[0], sent)
    with failures.count_failure(f"a send by {sanitize(provider)}"), use_caller_transaction(connection, settings) as tx:
        delivery_ids, may_be_open = _store(tx, campaign, new_sends)
        pairs, extra_metadata = _match(tx, new_sends, set(delivery_ids)) if may_be_open else ([], {})
        linked = link_in(tx, pairs, extra_metadata)
    return after_commit.attach_actions(connection, _make_results(new_sends, delivery_ids, linked))


def _store(tx: Transaction, campaign: Campaign, new_sends: Sequence[NewDelivery]) -> tuple[list[str], bool]:
    """Store the new sends; return the delivery of each, and whether orphans may be open for one of the message ids."""
    first_sends = {send.identity: send for send in reversed(new_sends)}
    if not first_sends:
        return [], False
    stored_ids, may_be_open = sends.store(tx, campaign, list(first_sends.values()))
    return [stored_ids.get(send.identity) or first_sends[send.identity].delivery_id for send in new_sends], may_be_open


def _match(
    tx: Transaction, new_sends: Sequence[NewDelivery], new_delivery_ids: Set[str]
) -> tuple[Pairs, ExtraMetadata]:
    """Match the open orphans of the sends' message ids; return those that belong to one of the new deliveries."""
    ids = {send.message_id: None for send in new_sends if send.message_id is not None}
    # An orphan of another recipient can only belong to another delivery.
    recipients = {normalize_address(send.recipient) for send in new_sends}
    open_ids = open_orphans.with_message_ids(tx, new_sends[0].entry.tenant_id, ids, recipients)
    matches = match_orphans(tx.reading, open_orphans.read(tx.reading, open_ids)) if open_ids else []
    pairs = [
        (match.orphan.event_id, id_)
        for match in matches
        if (id_ := match.result.delivery_id) in new_delivery_ids and id_
    ]
    return pairs, unchecked_metadata(matches)


def _make_results(
    new_sends: Sequence[NewDelivery], delivery_ids: Sequence[str], linked: Sequence[ClaimedEvent]
) -> list[RecordedDelivery]:
    counts = Counter(event.delivery_id for event in linked)
    ids = dict.fromkeys((send.entry.tenant_id, send.message_id) for send in new_sends if send.message_id)
    action = make_action(linked, [LookUp(tenant_id, message_id=id_) for tenant_id, id_ in ids])
    return [RecordedDelivery(UUID(id_), counts[id_], action) for id_ in delivery_ids]


def validate_sends(tenant_id: str, provider: str, sent: Iterable[Sent]) -> list[NewDelivery]:
    """Validate the results of a provider's API, and return a new send for each, in order; *provider* is canonical."""
    if not isinstance(sent, Iterable):
        raise InvalidEventError("sent must be a list of Sent")
    new_sends = []
    for index, result in enumerate(sent):
        if not isinstance(result, Sent):
            raise InvalidEventError(f"sent[{index}] must be a Sent")
        new_sends.append(_validate_send(f"sent[{index}]", result, tenant_id, provider))
    return new_sends


def _validate_send(at: str, result: Sent, tenant_id: str, provider: str) -> NewDelivery:
    type_ = validation.sent_type(f"{at}.type", result.type)
    message_id = validation.sent_message_id(f"{at}.message_id", result.message_id, needed=type_ == "dispatched")
    recipient = validation.sent_recipient(f"{at}.recipient", result.recipient)
    normalized = normalize_address(recipient)
    if message_id is not None and normalize_address(message_id) == normalized:
        raise InvalidEventError(
            f"{at}.message_id must not be the recipient's address: nothing can be erased from the ledger"
        )
    delivery_id = uuid7()
    entry = Entry(
        id=uuid7(),
        tenant_id=tenant_id,
        delivery_id=delivery_id,
        type=type_,
        occurred_at=NOW if result.occurred_at is None else validation.utc(f"{at}.occurred_at", result.occurred_at),
        idempotency_key=_idempotency_key(
            tenant_id, provider, message_id, result._identity if message_id is None else normalized
        ),
        reject_reason=None,
        metadata={"provider": provider, provider_rules.rule_of(provider).stored_under: message_id},
        needs_reconciliation=False,
    )
    return NewDelivery(entry, delivery_id, recipient, message_id)


def _idempotency_key(*identity: str | None) -> str:
    """Return the key under which a send is recorded once: a digest, which names no person."""
    return f"send:{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}"
