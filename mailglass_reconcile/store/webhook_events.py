"""Mailglass's raw webhooks: the recipients that its ledger does not name, and the deletion of old ones."""

from __future__ import annotations

from collections.abc import Collection

from mailglass_reconcile.store.database import Transaction, array_literal

_READABLE = """
SELECT pg_relation_size(to_regclass(:webhooks)) > 0
       AND (SELECT count(*) = 4 FROM pg_attribute AS a
             WHERE a.attrelid = to_regclass(:webhooks) AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
               AND a.attname IN ('tenant_id', 'provider', 'provider_event_id', 'raw_payload'))
"""

_POSTMARK_RECIPIENTS = """
SELECT e.id::text, coalesce(left(w.raw_payload ->> 'Recipient', 513), left(w.raw_payload ->> 'Email', 513))
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id)
  JOIN {schema}.mailglass_events AS e ON e.id = k.id
  JOIN {schema}.mailglass_webhook_events AS w
    ON w.provider = 'postmark' AND w.provider_event_id = e.metadata ->> 'provider_event_id'
   AND w.tenant_id IS NOT DISTINCT FROM e.tenant_id
"""

DELETE_OLD = """
DELETE FROM {schema}.mailglass_webhook_events
 WHERE id = ANY (ARRAY(
         SELECT id FROM {schema}.mailglass_webhook_events
          WHERE status = :status AND inserted_at < now()::timestamp - make_interval(days => :days)
          ORDER BY inserted_at LIMIT :size FOR UPDATE SKIP LOCKED))
"""
"""For `in_batches`."""

PROVIDERS = ("postmark",)
"""Providers whose raw webhook names the recipient that Mailglass leaves out of its event."""


def recipients(tx: Transaction, event_ids: Collection[str]) -> dict[str, str]:
    """Return the recipients of Postmark's events whose raw webhook is still kept and may be read."""
    if not tx.execute(_READABLE, {"webhooks": tx.name_of("mailglass_webhook_events")}).scalar_one():
        return {}
    rows = tx.execute(_POSTMARK_RECIPIENTS, {"event_ids": array_literal(event_ids)})
    return {event_id: recipient for event_id, recipient in rows.all() if recipient}
