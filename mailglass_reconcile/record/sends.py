"""Recording what a provider's API has answered: one delivery per recipient, linked at once to what is open for it.

Everything happens in the caller's transaction, under a savepoint of ours. A send is recorded once: the key of its
first event, which the ledger holds once, is made of tenant, provider, message id and address.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import database_errors, is_of_data, sqlstate
from mailglass_reconcile.pubsub import Message
from mailglass_reconcile.record import linking, sessions, storing, validation
from mailglass_reconcile.record.recorded import Look, RecordedDelivery
from mailglass_reconcile.record.sent import Draft, Sent, check
from mailglass_reconcile.rules import addresses, providers
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import sends
from mailglass_reconcile.store.borrowing import borrowed
from mailglass_reconcile.store.callers import connection_of
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.model import Link, Report
from mailglass_reconcile.store.sends import Campaign, New
from mailglass_reconcile.sweep import batch

logger = logging.getLogger(__name__)


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
    """Record a send after the provider's API has answered: one delivery per recipient, with its `dispatched` event.

    Events that arrived earlier are linked in the same transaction, in their grace period or not. After your commit,
    the links are broadcast, and events that arrived at the same time are linked, too. A Session does that by itself;
    with a Connection, call `broadcast`.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit. Its settings are restored,
            also after an error.
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        sent: What the API has answered, for each recipient. Recording the same send again changes nothing: same tenant,
            provider, message id and address (without case and display name). Without a message id, each is new.
        tenant_id: The tenant that sends; None is `MAILGLASS_TENANT`.
        mailable: What kind of message it is, such as `Welcome`.
        stream: `transactional`, `operational` or `bulk`.
        metadata: What else to keep with each delivery, as JSON of at most 65,536 bytes.

    Returns:
        The delivery of each recipient, in the same order.

    Raises:
        InvalidEventError: Something cannot be recorded; nothing was written.
        ConfigurationError: *connection* is in autocommit mode.
        MailglassReconcileError: The database refused; nothing was written, and the caller's own work is untouched.
        TypeError: *connection* is something else.
    """
    runtime.load_imports()
    settings = runtime.get_settings()
    campaign = Campaign(
        validation.name("tenant_id", settings.tenant if tenant_id is None else tenant_id),
        providers.spellings(validation.provider("provider", provider)),
        validation.name("mailable", mailable),
        validation.stream("stream", stream),
        json.dumps(storing.metadata("metadata", {} if metadata is None else metadata)),
    )
    drafts = check(campaign.tenant_id, campaign.spellings[0], sent)
    with database_errors(), borrowed(connection_of(connection), settings) as tx:
        delivery_ids, reports = _store(tx, campaign, drafts)
        links = _link(tx, _match(tx, settings, drafts, set(delivery_ids)), reports)
    return sessions.returned(connection, _recorded(drafts, delivery_ids, links))


def _store(tx: Transaction, campaign: Campaign, drafts: Sequence[Draft]) -> tuple[list[str], list[Report]]:
    """Store the sends that are new; return the delivery of each, and what the new ones' first events report."""
    first = {draft.identity: draft for draft in reversed(drafts)}
    recipients = Counter(draft.message_id for draft in first.values() if draft.message_id is not None)
    rows = [
        New(d.entry, d.delivery_id, d.recipient, d.message_id, recipients[d.message_id] > 1) for d in first.values()
    ]
    known = sends.store(tx, campaign, rows) if rows else {}
    delivery_ids = {identity: known.get(identity) or draft.delivery_id for identity, draft in first.items()}
    new = [draft for identity, draft in first.items() if identity not in known]
    reports = [Report(d.delivery_id, d.entry.type, d.entry.occurred_at, projector.NOW, d.entry.id) for d in new]
    return [delivery_ids[draft.identity] for draft in drafts], reports


def _match(tx: Transaction, settings: Settings, drafts: Sequence[Draft], ours: Set[str]) -> list[tuple[str, str]]:
    """Return what is open for the drafts' message ids and belongs to one of our deliveries, by the sweep's rule."""
    ids = {draft.message_id: None for draft in drafts if draft.message_id is not None}
    if not ids:
        return []
    recipients = {addresses.address(draft.recipient) for draft in drafts}
    found = linking.find(tx, Look(drafts[0].entry.tenant_id, message_ids=tuple(ids)), settings)
    # Another recipient's can only belong to another's delivery.
    near = [o for o in found if o.keys.recipient is None or addresses.address(o.keys.recipient) in recipients]
    return [pair for pair in linking.matching(tx, near) if pair[1] in ours] if near else []


def _link(tx: Transaction, pairs: batch.Pairs, reports: Sequence[Report]) -> list[Link]:
    """Link *pairs* and project them with *reports*; an event that the database refuses to link costs no send."""
    if pairs:
        try:
            with tx.connection.begin_nested():
                settled = batch.settle(tx, pairs)
                projector.project(tx, [*reports, *settled.reports])
        except DBAPIError as error:
            if not is_of_data(error):
                raise
            logger.error("events of a send cannot be linked (SQLSTATE %s); the next sweep tries again", sqlstate(error))
        else:
            return settled.links
    if reports:
        projector.project(tx, reports)
    return []


def _recorded(drafts: Sequence[Draft], delivery_ids: Sequence[str], links: Sequence[Link]) -> list[RecordedDelivery]:
    counts = Counter(link.delivery_id for link in links)
    told: dict[str, list[Message]] = defaultdict(list)
    for message in projector.broadcast(links, list):
        told[message[1]].append(message)
    recorded = []
    for draft, id_ in zip(drafts, delivery_ids, strict=True):
        look = Look(draft.entry.tenant_id, message_ids=(draft.message_id,)) if draft.message_id else None
        # A recipient that was given twice is broadcast once.
        recorded.append(RecordedDelivery(UUID(id_), counts[id_], tuple(told.pop(id_, ())), look))
    return recorded
