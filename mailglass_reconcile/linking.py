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
WITH piece AS MATERIALIZED (
  SELECT o.event_id, o.arrived_at, o.tenant_id,
         coalesce(k.provider, o.provider) AS provider,
         coalesce(string_to_array(k.candidate_ids, E'\\x1f'), o.candidate_ids, '{}') AS candidate_ids,
         lower(coalesce(o.recipient, k.recipient)) AS recipient
    FROM mailglass_open_orphans AS o
    LEFT JOIN unnest(CAST(:event_ids AS uuid[]), CAST(:providers AS text[]), CAST(:candidate_ids AS text[]),
                     CAST(:recipients AS text[])) AS k (event_id, provider, candidate_ids, recipient)
      ON k.event_id = o.event_id
   WHERE (o.arrived_at, o.event_id) > (CAST(:after_time AS timestamp), CAST(:after_event AS uuid))
     AND (o.arrived_at, o.event_id) <= (CAST(:until_time AS timestamp), CAST(:until_event AS uuid))
     AND (CAST(:tenant_id AS text) IS NULL OR o.tenant_id = :tenant_id)
), named AS (
  SELECT p.event_id, d.id, d.tenant_id = p.tenant_id AS own,
         p.recipient IS NULL OR p.recipient = lower(btrim(d.recipient)) AS addressed,
         c.position * 2 + d.without_provider AS preference,
         min(c.position * 2 + d.without_provider) OVER (PARTITION BY p.event_id) AS deciding
    FROM piece AS p
   CROSS JOIN LATERAL unnest(p.candidate_ids) WITH ORDINALITY AS c (id, position)
   CROSS JOIN LATERAL (
           SELECT id, tenant_id, recipient, 0 AS without_provider FROM mailglass_deliveries
            WHERE provider = p.provider AND provider_message_id = c.id
            UNION ALL
           SELECT id, tenant_id, recipient, 1 AS without_provider FROM mailglass_deliveries
            WHERE provider IS NULL AND provider_message_id = c.id) AS d
), decided AS (
  SELECT event_id,
         CASE WHEN NOT bool_or(own) THEN 'tenant_mismatch'
              WHEN NOT bool_or(own AND addressed) THEN 'recipient_mismatch'
              WHEN count(*) FILTER (WHERE own AND addressed) > 1 THEN 'ambiguous'
              ELSE 'matched' END AS state,
         (array_agg(id) FILTER (WHERE own AND addressed))[1] AS delivery_id
    FROM named WHERE preference = deciding GROUP BY event_id
)
SELECT coalesce(d.state, CASE WHEN p.candidate_ids = '{}' THEN 'unmatchable' ELSE 'unmatched' END) AS state,
       count(*) AS orphans,
       array_agg(p.event_id::text ORDER BY p.arrived_at, p.event_id) FILTER (WHERE d.state = 'matched') AS event_ids,
       array_agg(d.delivery_id::text ORDER BY p.arrived_at, p.event_id) FILTER (WHERE d.state = 'matched')
         AS delivery_ids
  FROM piece AS p LEFT JOIN decided AS d ON d.event_id = p.event_id
 GROUP BY 1
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
