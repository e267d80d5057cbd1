"""The deliveries and open orphans of an address, a message or an id, newest first; no row shows an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import deliveries, explanation, orphans, runs
from mailglass_reconcile.ops.deliveries import DeliverySummary
from mailglass_reconcile.rules import addresses
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.rules.matching import is_usable, spellings_of
from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.store.queries.orphan_lists import ListedEvent
from mailglass_reconcile.store.tables import personal_data
from mailglass_reconcile.store.tables.personal_data import PersonFilter

READ_LIMIT = 100_000
"""Deliveries, and open orphans, of one address or id among which the newest are chosen: about a second."""
TIMEOUT_MS = 24_000


class SearchTerm(NamedTuple):
    """A validated search term.

    Attributes:
        text: The term, trimmed.
        address: The normalized address, if the term contains one; such a term is never shown.
        id: The id of an event or a delivery, if the term is a UUID.
        tenant_id: Only this tenant; None is all tenants.
    """

    text: str
    address: str | None
    id: UUID | None
    tenant_id: str | None


class Hit(NamedTuple):
    """A delivery or an event that matches the term.

    Attributes:
        kind: `delivery`, or `event`: an open orphan, or the event whose id is the term.
        id: Its id.
        at: When a delivery was stored, or an event arrived, in ISO 8601, UTC; the order of the hits.
        row: The delivery, or the event.
    """

    kind: Literal["delivery", "event"]
    id: str
    at: str
    row: DeliverySummary | ListedEvent

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `find --json` prints them."""
        return {"kind": self.kind, "id": self.id, **self.row.as_dict()}


@dataclass(frozen=True, slots=True)
class SearchResults:
    """The results of a search.

    Attributes:
        hits: The newest, newest first.
        deliveries: The number of matching deliveries, including those beyond the limit of hits.
        events: The number of matching events, likewise.
        more: True if there are more than the hits.
        at_least: True if the two numbers are lower bounds, because only `READ_LIMIT` of either kind are read.
        as_of: When the last full sweep ended, in ISO 8601. The states of open orphans are of that time, or newer.
    """

    hits: tuple[Hit, ...]
    deliveries: int
    events: int
    more: bool
    at_least: bool
    as_of: str | None


def parse_term(text: str, tenant_id: str | None = None) -> SearchTerm:
    """Validate a search term and classify it: an address, an id, and always a message id.

    Raises:
        ValueError: Nothing has such an address or id; the message does not repeat it.
    """
    term = text.strip()
    if not is_usable(term):
        raise ValueError(
            "give an address, a message id or the id of an event or a delivery: 1 to 512 characters in one line"
        )
    try:
        id_ = UUID(term) if len(term) == 36 else None
    except ValueError:
        id_ = None
    return SearchTerm(term, addresses.normalize_address(term) if contains_address(term) else None, id_, tenant_id)


def find(database: Database, term: SearchTerm, *, limit: int = 50) -> SearchResults:
    """Return the deliveries and open orphans of an address, a message or an id.

    Open orphans that name the message id of a delivery in the results are included: in every tenant, or in that of the
    term. An address is found in any spelling: deliveries through an index, open orphans in one pass.

    Args:
        database: Where the tables are.
        term: The validated search term.
        limit: At most this many hits.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    runtime.load_imports(only_warn=True)
    with database.reading(TIMEOUT_MS) as tx:
        return find_within(tx, term, limit=limit)


def find_within(tx: Transaction, term: SearchTerm, *, limit: int = 50) -> SearchResults:
    """Search as `find` does, in the caller's transaction; the adopter's rules must be loaded."""
    message_ids = {term.text, *spellings_of(term.text)}
    event, ids = _load_event(tx, term)
    recipient_key = addresses.make_index_key(term.address) if term.address else None
    if term.address and recipient_key is not None and not addresses.is_exact(recipient_key):
        ids |= _compare_recipients(tx, term.address, term.tenant_id)
        recipient_key = None
    newest_deliveries, number = deliveries.find_newest(
        tx,
        recipient_key=recipient_key,
        message_ids=message_ids,
        ids=ids,
        tenant_id=term.tenant_id,
        limit=limit,
        read_limit=READ_LIMIT,
    )
    message_ids |= {delivery.message_id for delivery in newest_deliveries if delivery.message_id}
    open_ = orphans.find_newest(
        tx,
        recipient=term.address,
        message_ids=message_ids,
        tenant_id=term.tenant_id,
        limit=limit,
        read_limit=READ_LIMIT,
    )
    as_of = runs.load_history(tx).counted_at
    events = {orphan.event_id: orphan for orphan in (*open_.orphans, *event)}
    hits = [Hit("delivery", delivery.delivery_id, delivery.stored_at, delivery) for delivery in newest_deliveries]
    hits += [Hit("event", orphan.event_id, orphan.arrived_at, orphan) for orphan in events.values()]
    newest = sorted(hits, key=lambda hit: (hit.at.removesuffix("Z"), hit.id), reverse=True)[:limit]
    events_number = max(open_.number, len(events))
    more = number + events_number > len(newest)
    return SearchResults(tuple(newest), number, events_number, more, number >= READ_LIMIT or open_.at_least, as_of)


def _load_event(tx: Transaction, term: SearchTerm) -> tuple[list[ListedEvent], set[str]]:
    """Return the event with the id of the term, if any, and the ids of deliveries to search for."""
    if term.id is None:
        return [], set()
    explained = explanation.explain_within(tx, term.id)
    if explained.state == "unknown" or term.tenant_id not in (None, explained.tenant_id):
        return [], {str(term.id)}
    event = ListedEvent(
        explained.event_id,
        explained.tenant_id or "",
        explained.provider,
        explained.type,
        explained.state,
        explained.arrived_at or "",
        explained.expires_at,
        explained.candidate_ids,
        explained.delivery_id,
        explained.verdict,
    )
    return [event], {str(term.id), *filter(None, [explained.delivery_id])}


def _compare_recipients(tx: Transaction, address: str, tenant_id: str | None) -> set[str]:
    """Return the deliveries to an address whose key others share; at most `READ_LIMIT` are compared."""
    person = PersonFilter(addresses.make_index_key(address), addresses.search_fragment(address), tenant_id)
    rows = personal_data.find_deliveries(tx, person, READ_LIMIT)
    return {id_ for id_, recipient in rows if addresses.normalize_address(recipient) == address}
