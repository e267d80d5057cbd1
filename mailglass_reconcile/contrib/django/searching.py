"""What the admin's searches find: exact ids and addresses, each through an index."""

from __future__ import annotations

from uuid import UUID

from django.db import connections

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database
from mailglass_reconcile.store.database import in_schema

LIMIT = 1_000
"""Rows that a list shows and counts at most: counting all of a million would take longer than anything else."""

# The index is on (tenant_id, recipient): one step from tenant to tenant, however many rows each has.
DELIVERIES = """
WITH RECURSIVE tenants AS (
  (SELECT tenant_id FROM {schema}.mailglass_deliveries ORDER BY tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d
           WHERE d.tenant_id > t.tenant_id ORDER BY d.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
), found AS (
  SELECT id FROM {schema}.mailglass_deliveries WHERE id = %(uuid)s
   UNION ALL
  (SELECT id FROM {schema}.mailglass_deliveries WHERE provider_message_id = %(text)s LIMIT %(limit)s)
   UNION ALL
  SELECT d.id
    FROM tenants AS t
   CROSS JOIN LATERAL (
           SELECT id FROM {schema}.mailglass_deliveries
            WHERE tenant_id = t.tenant_id AND recipient = ANY (ARRAY[%(text)s, lower(%(text)s)])) AS d
)
SELECT id FROM found LIMIT %(limit)s
"""

# An orphan that was linked has no delivery in its row: its `reconciled` event has, and names it.
EVENTS = """
WITH found AS (
  SELECT id FROM {schema}.mailglass_events WHERE id = %(uuid)s
   UNION ALL
  SELECT id FROM {schema}.mailglass_events WHERE delivery_id = %(uuid)s
   UNION ALL
  SELECT id FROM {schema}.mailglass_events WHERE idempotency_key = %(text)s
   UNION ALL
  SELECT e.id
    FROM {schema}.mailglass_deliveries AS d
   CROSS JOIN LATERAL (SELECT id FROM {schema}.mailglass_events WHERE delivery_id = d.id) AS e
   WHERE d.provider_message_id = %(text)s
   UNION ALL
  SELECT event_id FROM {schema}.mailglass_open_orphan_ids WHERE candidate_id = %(text)s
)
SELECT id FROM found LIMIT %(limit)s
"""

ORPHANS = """
WITH found AS (
  SELECT event_id FROM {schema}.mailglass_open_orphans WHERE event_id = %(uuid)s
   UNION ALL
  SELECT event_id FROM {schema}.mailglass_open_orphan_ids WHERE candidate_id = %(text)s
)
SELECT event_id FROM found LIMIT %(limit)s
"""


def ids(statement: str, term: str) -> list[UUID]:
    """Return the ids of what is found for *term*, at most `LIMIT`."""
    text = term.strip().replace("\0", "")
    with connections[database.alias()].cursor() as cursor:
        cursor.execute(
            in_schema(statement, runtime.get_settings().database_schema),
            {"text": text, "uuid": _uuid(text), "limit": LIMIT},
        )
        return [row[0] for row in cursor.fetchall()]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
