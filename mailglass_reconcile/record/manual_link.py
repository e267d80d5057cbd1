"""Link an event manually to the delivery that a person chooses, whatever its ids are."""

from __future__ import annotations

import getpass
import json
import os
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError, InvalidEventError
from mailglass_reconcile.record import after_commit, validation
from mailglass_reconcile.record.after_commit import Recorded, make_action
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.tables import ledger, open_orphans
from mailglass_reconcile.store.tables.ledger import ClaimedEvent
from mailglass_reconcile.store.tables.open_orphans import MAX_TENANT_LENGTH

LINKED_BY = "hand"

_FACTS = """
SELECT e.id IS NOT NULL AS has_event, e.needs_reconciliation AND e.delivery_id IS NULL AS is_orphan,
       length(e.tenant_id) AS tenant_length, r.id IS NOT NULL AS is_linked, d.id IS NOT NULL AS has_delivery,
       d.tenant_id IS NOT DISTINCT FROM e.tenant_id AS is_same_tenant, o.event_id IS NOT NULL AS is_open,
       upper(current_setting('transaction_isolation')) AS isolation
  FROM (SELECT CAST(:event_id AS uuid) AS event_id, CAST(:delivery_id AS uuid) AS delivery_id) AS k
  LEFT JOIN {schema}.mailglass_events AS e ON e.id = k.event_id
  LEFT JOIN LATERAL {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id) AS r ON true
  LEFT JOIN {schema}.mailglass_deliveries AS d ON d.id = k.delivery_id
  LEFT JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.event_id
"""


class ManualLink(NamedTuple):
    """A validated manual link: event, delivery, and the reason and actor that the appended event stores."""

    event_id: str
    delivery_id: str
    reason: str
    actor: str


def link(
    connection: sa.Connection | Session,
    event_id: UUID,
    delivery_id: UUID,
    *,
    reason: str,
    actor: str | None = None,
) -> Recorded:
    """Link an event to a delivery that you choose; only their tenant must be the same. It cannot be undone.

    For events that no sweep links: ambiguous ones, those of another recipient, without a usable id, or expired.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        event_id: The event, which is not linked yet.
        delivery_id: Its delivery.
        reason: The reason, in 1 to 512 characters without an e-mail address; the ledger keeps it.
        actor: The person who decided it, without an e-mail address; None is the operating system's user.

    Returns:
        The event and its delivery, for `broadcast`.

    Raises:
        InvalidEventError: Event or delivery does not exist, their tenants differ, the event is linked, or *reason* or
            *actor* cannot be stored.
        ConfigurationError: The event has expired and the transaction is not READ COMMITTED, or *connection* is in
            autocommit mode.
        MailglassReconcileError: Another session holds the event or the delivery, or the database refused.
        TypeError: *connection* is something else.
    """
    runtime.load_imports()
    manual = validate_link(event_id, delivery_id, reason, actor)
    with use_caller_transaction(connection, runtime.get_settings()) as tx:
        linked = _link(tx, manual)
    return after_commit.attach_actions(connection, [_recorded(linked)])[0]


def validate_link(event_id: object, delivery_id: object, reason: object, actor: object = None) -> ManualLink:
    """Validate the arguments of `link`; an InvalidEventError names the invalid one."""
    return ManualLink(
        validation.uuid("event_id", event_id),
        validation.uuid("delivery_id", delivery_id),
        validation.free_text("reason", reason),
        validation.free_text("actor", _operating_system_user() if actor is None else actor),
    )


def link_with(database: Database, manual: ManualLink) -> Recorded:
    """Make a manual link in its own transaction, and broadcast it."""
    runtime.load_imports()
    with database.connect() as connected:
        with connected.reading() as tx:
            installed.require_migrated(tx)
        with connected.writing() as tx:
            linked = _link(tx, manual)
        recorded = after_commit.attach_actions(connected.connection, [_recorded(linked)])
    after_commit.broadcast(recorded)
    return recorded[0]


def require_linkable(database: Database, manual: ManualLink) -> None:
    """Raise an error unless the event can be linked to the delivery; write nothing."""
    with database.reading() as tx:
        installed.require_migrated(tx)
        _load_and_require_linkable(tx, manual)


def _operating_system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return f"uid {os.getuid()}"


def _link(tx: Transaction, manual: ManualLink) -> ClaimedEvent:
    """Require a linkable event, reopen its orphan if it has expired, and link it as a sweep does."""
    if not _is_open(tx, manual):
        open_orphans.reopen(tx, [manual.event_id])
    metadata = {"linked_by": LINKED_BY, "linked_by_actor": manual.actor, "reason": manual.reason}
    pairs = [(manual.event_id, manual.delivery_id)]
    events = ledger.link(tx, pairs, {manual.event_id: json.dumps(metadata)})
    linked = [event for event in events if event.reconciled_id]
    if not linked:
        _is_open(tx, manual)  # raises if it has been deleted or linked meanwhile
        raise DatabaseRefusedError(f"another session holds event {manual.event_id} or its delivery: try again")
    return linked[0]


def _is_open(tx: Transaction, manual: ManualLink) -> bool:
    """Require that the event can be linked to the delivery; return True if its orphan is open, False if it expired."""
    row = _load_and_require_linkable(tx, manual)
    if not row.is_open and row.isolation != "READ COMMITTED":
        raise ConfigurationError(
            f"event {manual.event_id} has expired: link it in a READ COMMITTED transaction, not in a {row.isolation}"
            " one"
        )
    return bool(row.is_open)


def _load_and_require_linkable(tx: Transaction, manual: ManualLink) -> sa.Row[Any]:
    """Return the facts about event and delivery; raise an error unless they can be linked."""
    event, delivery = f"event {manual.event_id}", f"delivery {manual.delivery_id}"
    row = tx.execute(_FACTS, {"event_id": manual.event_id, "delivery_id": manual.delivery_id}).one()
    if not row.has_event:
        raise InvalidEventError(f"there is no {event}")
    if not row.has_delivery:
        raise InvalidEventError(f"there is no {delivery}")
    if not row.is_orphan:
        raise InvalidEventError(f"{event} is not an orphan: it was stored with its delivery, or needs none")
    if row.is_linked:
        raise InvalidEventError(f"{event} is linked already: `mailglass-reconcile explain {manual.event_id}` shows how")
    if not row.is_same_tenant:
        raise InvalidEventError(f"{event} and {delivery} are of different tenants")
    if row.tenant_length > MAX_TENANT_LENGTH:
        raise InvalidEventError(f"the tenant id of {event} has more than {MAX_TENANT_LENGTH:,} characters")
    return row


def _recorded(linked: ClaimedEvent) -> Recorded:
    return Recorded(UUID(linked.event_id), UUID(linked.delivery_id), make_action([linked]))
