"""What reports do to the columns of their deliveries, as SQL."""

from __future__ import annotations

from mailglass_reconcile.rules.event_types import OWN_TYPES, PROVIDER_TYPES
from mailglass_reconcile.store.database import Kept, array_literal
from mailglass_reconcile.store.deliveries import CREDIBLE, NEXT_VERSION
from mailglass_reconcile.store.ledger import APPEND_WEBHOOK, HELD_STATE

STANDING = {type_: place for place, type_ in enumerate((*OWN_TYPES, *PROVIDER_TYPES), 1)}
"""The types that move a delivery's state, from the least to the most that they say of it."""

_STANDINGS = f"CAST('{array_literal(STANDING)}' AS text[])"

_COMPARED = """
report AS (
  SELECT delivery_id, type, standing, terminal, last_event_at, held_standing, {credible} AS occurred_at
    FROM {reported} AS r
-- What is reported of each delivery, in one row.
), summary AS (
  SELECT delivery_id, last_event_at, held_standing,
         (array_agg(standing ORDER BY standing > {own} DESC, occurred_at DESC, standing DESC))[1] AS standing,
         (array_agg(occurred_at ORDER BY standing > {own} DESC, occurred_at DESC, standing DESC))[1] AS occurred_at,
         min(occurred_at) FILTER (WHERE type = 'dispatched') AS dispatched_at,
         min(occurred_at) FILTER (WHERE type = 'delivered') AS delivered_at,
         min(occurred_at) FILTER (WHERE type = 'bounced') AS bounced_at,
         min(occurred_at) FILTER (WHERE type = 'complained') AS complained_at,
         min(occurred_at) FILTER (WHERE type = 'suppressed') AS suppressed_at,
         bool_or(terminal) AS terminal
    FROM report GROUP BY delivery_id, last_event_at, held_standing
-- Whether it is newer than what the delivery's row points to.
), compared AS (
  SELECT *, (standing > {own}, occurred_at, standing)
              > (held_standing > {own}, last_event_at, held_standing) AS newer
    FROM summary
)
""".replace("{credible}", CREDIBLE).replace("{own}", str(len(OWN_TYPES)))

_UPDATE = """
UPDATE {schema}.mailglass_deliveries AS d
   SET last_event_type = CASE WHEN c.newer THEN ({standings})[c.standing] ELSE d.last_event_type END,
       last_event_at = CASE WHEN c.newer THEN c.occurred_at ELSE d.last_event_at END,
       terminal = d.terminal OR c.terminal,
       dispatched_at = least(d.dispatched_at, c.dispatched_at),
       delivered_at = least(d.delivered_at, c.delivered_at),
       bounced_at = least(d.bounced_at, c.bounced_at),
       complained_at = least(d.complained_at, c.complained_at),
       suppressed_at = least(d.suppressed_at, c.suppressed_at),
       {next_version},
       updated_at = now()::timestamp
  FROM compared AS c
 WHERE d.id = c.delivery_id
   AND (c.newer
        OR (d.terminal, d.dispatched_at, d.delivered_at, d.bounced_at, d.complained_at, d.suppressed_at)
           IS DISTINCT FROM
           (d.terminal OR c.terminal, least(d.dispatched_at, c.dispatched_at), least(d.delivered_at, c.delivered_at),
            least(d.bounced_at, c.bounced_at), least(d.complained_at, c.complained_at),
            least(d.suppressed_at, c.suppressed_at)))
""".replace("{next_version}", NEXT_VERSION)

_HAND_OVER = """
handed_over AS (
  -- Without a conflict target, which would need the right to read. Sorted: two transactions wait one way only.
  INSERT INTO {schema}.mailglass_hook_outbox (event_id, delivery_id, type, next_at, inserted_at)
  SELECT event_id, delivery_id, type, now()::timestamp, now()::timestamp
    FROM {arrived} WHERE type = ANY (ARRAY(SELECT type FROM {schema}.mailglass_handled_types)) ORDER BY event_id
      ON CONFLICT DO NOTHING
)"""

_GIVEN = """
reached AS (
  SELECT *
    FROM unnest(CAST(:event_ids AS uuid[]), CAST(:delivery_ids AS uuid[]), CAST(:types AS text[]),
                CAST(:occurred_at AS timestamp[]), CAST(:arrived_at AS timestamp[]), CAST(:standings AS integer[]),
                CAST(:terminal AS boolean[]))
         AS p (event_id, delivery_id, type, occurred_at, arrived_at, standing, terminal)
)"""
_PARAMETERS = """
         (SELECT * FROM reached AS p
           CROSS JOIN LATERAL (SELECT {held_state} FROM {schema}.mailglass_deliveries WHERE id = p.delivery_id) AS d
           WHERE standing IS NOT NULL)""".replace("{held_state}", HELD_STATE)

PROJECT = (
    f"WITH {_GIVEN}, {_HAND_OVER}, {_COMPARED} {_UPDATE}".replace("{arrived}", "reached")
    .replace("{reported}", _PARAMETERS)
    .replace("{standings}", _STANDINGS)
)

_APPENDED = """
         (SELECT *, now()::timestamp AS arrived_at FROM reached)"""
_ATTACHED = """
reached AS (
  SELECT *, id AS event_id FROM n WHERE (id IN (SELECT id FROM appended WHERE delivery_id IS NOT NULL)) IS TRUE
)"""
_RETURNED = "SELECT id::text, delivery_id::text FROM appended"

_COLUMNS = "event_id text, delivery_id text"

APPEND = Kept(
    "mailglass_reconcile_append", _COLUMNS, f"{APPEND_WEBHOOK} {_RETURNED}".replace("{standings}", _STANDINGS)
)
"""For a webhook whose deliveries are all unknown."""

APPEND_AND_PROJECT = Kept(
    "mailglass_reconcile_append_and_project",
    _COLUMNS,
    f"{APPEND_WEBHOOK}, {_ATTACHED}, {_HAND_OVER}, {_COMPARED}, projected AS ({_UPDATE}) {_RETURNED}".replace(
        "{arrived}", "reached"
    )
    .replace("{reported}", _APPENDED)
    .replace("{standings}", _STANDINGS),
)
"""Both in one round trip."""
