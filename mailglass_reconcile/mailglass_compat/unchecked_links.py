"""Count the links made by the message id alone, because Mailglass's ledger names no recipient."""

from __future__ import annotations

from collections.abc import Collection

from mailglass_reconcile.store.database import Transaction, array_literal

METADATA = '{"recipient_checked": false}'
"""Metadata of such a link's appended event, as JSON; the database omits it for events of our writers."""

_OF_OTHER_WRITERS = """
SELECT count(*)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id) JOIN {schema}.mailglass_events AS e ON e.id = k.id
 WHERE starts_with(e.idempotency_key, 'webhook:') IS NOT TRUE
"""


def count_unchecked(tx: Transaction, event_ids: Collection[str]) -> int:
    """Return the number of *event_ids* that `record_webhook` did not record: only their links can be unchecked."""
    if not event_ids:
        return 0
    return int(tx.execute(_OF_OTHER_WRITERS, {"event_ids": array_literal(event_ids)}).scalar_one())
