"""Links by the message id alone, because Mailglass's ledger names no recipient; each is noted, and counted."""

from __future__ import annotations

from collections.abc import Collection

from mailglass_reconcile.store.database import Transaction, array_literal

NOTE = '{"recipient_checked": false}'
"""What the appended event says, as JSON; the database leaves it out for what our writers recorded."""

_OF_OTHER_WRITERS = """
SELECT count(*)
  FROM unnest(CAST(:event_ids AS uuid[])) AS k (id) JOIN {schema}.mailglass_events AS e ON e.id = k.id
 WHERE starts_with(e.idempotency_key, 'webhook:') IS NOT TRUE
"""


def of_other_writers(tx: Transaction, event_ids: Collection[str]) -> int:
    """Return how many of *event_ids* `record_webhook` has not recorded: only their links have the note."""
    if not event_ids:
        return 0
    return int(tx.execute(_OF_OTHER_WRITERS, {"event_ids": array_literal(event_ids)}).scalar_one())
