"""What each open orphan links to, or why it does not: one read-only join, without locks.

The rule: the first candidate id that names a delivery decides; of the deliveries with the event's provider, or
else of those without a provider; only those of the orphan's tenant; where the event knows a recipient, only
that recipient's; and then exactly one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from mailglass_reconcile.model import Keys, Slice, keys_parameters

MATCHED = "matched"
UNMATCHED = "unmatched"
UNMATCHABLE = "unmatchable"
AMBIGUOUS = "ambiguous"
TENANT_MISMATCH = "tenant_mismatch"
RECIPIENT_MISMATCH = "recipient_mismatch"

_MATCH = sa.text("""
WITH piece AS (
  SELECT event_id, arrived_at, tenant_id, provider, candidate_ids, recipient
    FROM mailglass_open_orphans
   WHERE candidate_ids IS NOT NULL
     AND (arrived_at, event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
     AND (arrived_at, event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)
   UNION ALL
  SELECT o.event_id, o.arrived_at, o.tenant_id, k.provider, string_to_array(k.candidate_ids, E'\x1f'),
         coalesce(o.recipient, k.recipient)
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:candidate_ids AS text[]),
                CAST(:recipients AS text[])) AS k (event_id, provider, candidate_ids, recipient)
    JOIN mailglass_open_orphans AS o ON o.event_id = k.event_id
), classified AS (
  SELECT p.event_id, p.arrived_at, f.delivery_id,
         CASE WHEN p.candidate_ids = '{}' THEN 'unmatchable'
              WHEN f.named = 0 THEN 'unmatched'
              WHEN f.own = 0 THEN 'tenant_mismatch'
              WHEN f.addressed = 0 THEN 'recipient_mismatch'
              WHEN f.addressed > 1 THEN 'ambiguous'
              ELSE 'matched' END AS state
    FROM piece AS p
   CROSS JOIN LATERAL (
           SELECT count(*) AS named, count(*) FILTER (WHERE own) AS own,
                  count(*) FILTER (WHERE own AND addressed) AS addressed,
                  (array_agg(id) FILTER (WHERE own AND addressed))[1] AS delivery_id
             FROM (SELECT d.id, d.tenant_id = p.tenant_id AS own,
                          p.recipient IS NULL OR lower(btrim(d.recipient)) = lower(p.recipient) AS addressed,
                          (c.position, d.without_provider)
                            = (first_value(c.position) OVER decision, first_value(d.without_provider) OVER decision)
                            AS decides
                     FROM unnest(p.candidate_ids) WITH ORDINALITY AS c (id, position)
                    CROSS JOIN LATERAL (
                            SELECT id, tenant_id, recipient, false AS without_provider FROM mailglass_deliveries
                             WHERE provider = p.provider AND provider_message_id = c.id
                             UNION ALL
                            SELECT id, tenant_id, recipient, true AS without_provider FROM mailglass_deliveries
                             WHERE provider IS NULL AND provider_message_id = c.id) AS d
                   WINDOW decision AS (ORDER BY c.position, d.without_provider)) AS named
            WHERE decides) AS f
)
SELECT state, count(*) AS orphans,
       array_agg(event_id::text ORDER BY arrived_at, event_id) FILTER (WHERE state = 'matched') AS event_ids,
       array_agg(delivery_id::text ORDER BY arrived_at, event_id) FILTER (WHERE state = 'matched') AS delivery_ids
  FROM classified GROUP BY state
""")


class Findings(NamedTuple):
    """What the orphans of a slice came to: how many of each state, and the matched pairs in order of arrival."""

    states: dict[str, int]
    pairs: list[tuple[str, str]]


def match(connection: sa.Connection, piece: Slice, computed: Mapping[str, Keys]) -> Findings:
    """Find the delivery of each open orphan of *piece*; nothing is locked or written.

    Args:
        connection: In a transaction of this package's scope.
        piece: The orphans to look at.
        computed: Keys of those that have none stored.

    Returns:
        The number of orphans by state, and `(event id, delivery id)` of those that can be linked.
    """
    rows = connection.execute(_MATCH, {**piece.parameters(), **keys_parameters(computed)}).all()
    pairs = [
        pair for row in rows if row.event_ids for pair in zip(row.event_ids, row.delivery_ids, strict=True)
    ]
    return Findings({row.state: row.orphans for row in rows}, pairs)
