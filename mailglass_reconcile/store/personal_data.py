"""What our own tables hold about one person, and its removal; nothing is removed from the ledger.

Rows are found by a part of the address that every spelling has; the caller compares. Each page is in the order of ids.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from mailglass_reconcile.rules.addresses import ERASED_DOMAIN
from mailglass_reconcile.store.database import Transaction, array_literal

# First all that our index has of the key, then page and order: otherwise the planner walks the primary key, and
# computes a key for each row. IS NOT DISTINCT FROM, because no index serves it: one on the tenant looks cheap, too.
_DELIVERIES = """
WITH found AS MATERIALIZED (
  SELECT id, recipient FROM {schema}.mailglass_deliveries
   WHERE {recipient_key} = hashtextextended(:key, 0)
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS text))
)
SELECT f.id::text, f.recipient FROM found AS f WHERE f.id > CAST(:after AS uuid) ORDER BY f.id LIMIT :size
"""

# The version moves, so that an application with optimistic locks does not write back what it read before.
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

# Every row is returned, so that no statement reads more than a page, however few name anybody. The lower case of ASCII
# only, in any locale of the database: the part that is looked for has nothing else.
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


class Person(NamedTuple):
    """Whose rows are looked for.

    Attributes:
        key: The `index_key` of the address.
        part: Its `rough_part`.
        tenant_id: Of this tenant only; None is all.
    """

    key: str
    part: str
    tenant_id: str | None


def deliveries(tx: Transaction, person: Person, after: str, size: int) -> list[tuple[str, str]]:
    """Return the next deliveries that may be the person's, as id and recipient."""
    parameters = {"key": person.key, "tenant_id": person.tenant_id, "after": after, "size": size}
    return [(id_, recipient) for id_, recipient in tx.execute(_DELIVERIES, parameters).all()]


def erase_deliveries(tx: Transaction, ids: Collection[str]) -> None:
    """Put a random address in the place of each recipient, and empty the metadata; the caller has locked the rows."""
    tx.execute(_ERASE_DELIVERIES, {"ids": array_literal(ids), "domain": ERASED_DOMAIN})


def open_orphans(tx: Transaction, person: Person, after: str, size: int) -> list[tuple[str, str]]:
    """Return the next open orphans that may be about the person, as id and recipient."""
    parameters = {"key": person.key, "tenant_id": person.tenant_id, "after": after, "size": size}
    return [(id_, recipient) for id_, recipient in tx.execute(_OPEN_ORPHANS, parameters).all()]


def erase_open_orphans(tx: Transaction, ids: Collection[str]) -> None:
    """Forget the recipients of open orphans, and that they were known: no delivery is chosen for them."""
    tx.execute(_ERASE_OPEN_ORPHANS, {"ids": array_literal(ids)})


def webhook_events(tx: Transaction, person: Person, after: str, size: int) -> list[tuple[str, bool]]:
    """Return the ids of the next raw webhooks, and whether each may name the person."""
    parameters = {"part": person.part, "tenant_id": person.tenant_id, "after": after, "size": size}
    return [(id_, may) for id_, may in tx.execute(_WEBHOOK_EVENTS, parameters).all()]


def webhook_text(tx: Transaction, id_: str) -> str:
    """Return all that a raw webhook holds; it may have several megabytes."""
    return str(tx.execute(_WEBHOOK_EVENT, {"id": id_}).scalar_one_or_none() or "")


def erase_webhook_events(tx: Transaction, ids: Collection[str]) -> None:
    """Empty raw webhooks; the rows stay, with their status and times."""
    tx.execute(_ERASE_WEBHOOK_EVENTS, {"ids": array_literal(ids)})
