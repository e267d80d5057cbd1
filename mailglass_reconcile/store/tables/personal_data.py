"""Find and erase a person's address in our tables; the ledger is not touched.

Rows are found by a part of the address that every spelling contains; the caller compares them. They are in the order of
ids.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from mailglass_reconcile.rules.addresses import ERASED_DOMAIN
from mailglass_reconcile.store.database import Transaction, array_literal

# First all rows that our index has for the key, then order and limit: otherwise the planner walks the primary key, and
# computes a key for each row. IS NOT DISTINCT FROM keeps the planner from an index on the tenant, which looks cheap.
_DELIVERIES = """
WITH found AS MATERIALIZED (
  SELECT id, recipient FROM {schema}.mailglass_deliveries
   WHERE {recipient_key} = hashtextextended(:key, 0)
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))
)
SELECT f.id::text, f.recipient FROM found AS f ORDER BY f.id LIMIT CAST(:size AS integer)
"""

# The version is incremented, so that an application with optimistic locking does not write the address back.
_ERASE_DELIVERIES = """
UPDATE {schema}.mailglass_deliveries AS d
   SET recipient = gen_random_uuid()::text || '@' || :domain, recipient_domain = :domain, metadata = '{}',
       last_error = NULL, updated_at = now()::timestamp, lock_version = d.lock_version + 1
 WHERE id = ANY (CAST(:ids AS uuid[]))
"""

_OPEN_ORPHANS = """
SELECT o.event_id::text, recipient FROM {schema}.mailglass_open_orphans AS o
 WHERE recipient IS NOT NULL AND o.event_id > CAST(:after AS uuid)
   AND {recipient_key} = hashtextextended(:key, 0)
   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = CAST(:tenant_id AS text))
 ORDER BY o.event_id LIMIT :size
"""

_ERASE_OPEN_ORPHANS = """
UPDATE {schema}.mailglass_open_orphans SET recipient = NULL, recipient_lost = true
 WHERE event_id = ANY (CAST(:ids AS uuid[]))
"""

# Every row is returned, matching or not, so that no statement reads more than a page. COLLATE "C" lowers ASCII only,
# which is all that the fragment contains, in any locale of the database.
_WEBHOOK_EVENTS = """
SELECT w.id::text, strpos(lower((raw_payload::text || provider_event_id) COLLATE "C"), :part) > 0
  FROM {schema}.mailglass_webhook_events AS w
 WHERE w.id > CAST(:after AS uuid) AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = CAST(:tenant_id AS text))
 ORDER BY w.id LIMIT :size
"""

_WEBHOOK_EVENT = """
SELECT raw_payload::text || ' ' || provider_event_id FROM {schema}.mailglass_webhook_events WHERE id = CAST(:id AS uuid)
"""

_ERASE_WEBHOOK_EVENTS = """
UPDATE {schema}.mailglass_webhook_events
   SET raw_payload = '{}', updated_at = now()::timestamp,
       provider_event_id = CASE WHEN provider_event_id ~ '@|%40' THEN 'erased:' || id ELSE provider_event_id END
 WHERE id = ANY (CAST(:ids AS uuid[]))
"""


class PersonFilter(NamedTuple):
    """The person whose rows are searched for.

    Attributes:
        key: The index key of the address, from `make_index_key`.
        part: The part of it that every spelling contains, from `search_fragment`.
        tenant_id: Only this tenant; None is all tenants.
    """

    key: str
    part: str
    tenant_id: str | None


def find_deliveries(tx: Transaction, person: PersonFilter, size: int | None = None) -> list[tuple[str, str]]:
    """Return the deliveries, at most *size*, that may be the person's, as id and recipient."""
    parameters = {"key": person.key, "tenant_id": person.tenant_id, "size": size}
    return [(id_, recipient) for id_, recipient in tx.execute(_DELIVERIES, parameters).all()]


def erase_deliveries(tx: Transaction, ids: Collection[str]) -> None:
    """Replace each recipient by a random placeholder, and empty the metadata; the caller has locked the rows."""
    tx.execute(_ERASE_DELIVERIES, {"ids": array_literal(ids), "domain": ERASED_DOMAIN})


def page_of_open_orphans(tx: Transaction, person: PersonFilter, after: str, size: int) -> list[tuple[str, str]]:
    """Return the next open orphans that may be about the person, as id and recipient."""
    parameters = {"key": person.key, "tenant_id": person.tenant_id, "after": after, "size": size}
    return [(id_, recipient) for id_, recipient in tx.execute(_OPEN_ORPHANS, parameters).all()]


def erase_open_orphans(tx: Transaction, ids: Collection[str]) -> None:
    """Erase the recipients of open orphans, and mark them as lost, so that no delivery is chosen for them."""
    tx.execute(_ERASE_OPEN_ORPHANS, {"ids": array_literal(ids)})


def page_of_webhook_events(tx: Transaction, person: PersonFilter, after: str, size: int) -> list[tuple[str, bool]]:
    """Return the ids of the next raw webhooks, each with whether it may name the person."""
    parameters = {"part": person.part, "tenant_id": person.tenant_id, "after": after, "size": size}
    return [(id_, may_name) for id_, may_name in tx.execute(_WEBHOOK_EVENTS, parameters).all()]


def load_webhook_text(tx: Transaction, id_: str) -> str:
    """Return the whole text of a raw webhook, which may have several megabytes."""
    return str(tx.execute(_WEBHOOK_EVENT, {"id": id_}).scalar_one_or_none() or "")


def erase_webhook_events(tx: Transaction, ids: Collection[str]) -> None:
    """Empty raw webhooks, and keep the rows with their status and times."""
    tx.execute(_ERASE_WEBHOOK_EVENTS, {"ids": array_literal(ids)})
