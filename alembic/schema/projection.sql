-- How events are projected onto deliveries.

-- step: function mailglass_reconcile_credible_v1
-- When what was reported counts as having occurred: its arrival, if its own time cannot be right. Inlined too, so
-- without settings, and with the operators of pg_catalog.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_credible_v1(occurred_at timestamp, arrived_at timestamp)
RETURNS timestamp LANGUAGE sql IMMUTABLE AS $$
SELECT CASE WHEN occurred_at OPERATOR(pg_catalog.<) '2000-01-01' THEN arrived_at
            WHEN (occurred_at OPERATOR(pg_catalog.-) interval '5 minutes') OPERATOR(pg_catalog.>) arrived_at
            THEN arrived_at
            ELSE occurred_at END
$$;

-- step: function mailglass_reconcile_project_v1
-- Brings deliveries up to date with events, in whatever order they come: each column is a maximum, a minimum or an OR
-- over the events and over what the row holds. The caller has locked the rows. Returns how many changed: lock_version
-- and updated_at move if and only if something else did.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_project_v1(
  delivery_ids uuid[], types text[], times timestamp[], arrivals timestamp[])
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  -- From the least to the most that a type says of a delivery. What the sending side reports is below what a provider
  -- does; any other type moves nothing.
  known CONSTANT text[] := '{{event_types}}';
  sender_types CONSTANT integer := {sender_types};
  final CONSTANT text[] := '{{final_types}}';
  changed bigint;
BEGIN
  -- What is reported of each delivery, in one row.
  WITH report AS (
    SELECT r.delivery_id, r.type, array_position(known, r.type) AS standing, r.type = ANY (final) AS is_final,
           {schema}.mailglass_reconcile_credible_v1(r.occurred_at, r.arrived_at) AS occurred_at
      FROM unnest(delivery_ids, types, times, arrivals) AS r (delivery_id, type, occurred_at, arrived_at)
     WHERE r.type = ANY (known)
  ), summary AS (
    SELECT delivery_id,
           (array_agg(standing ORDER BY standing > sender_types DESC, occurred_at DESC, standing DESC))[1] AS standing,
           (array_agg(occurred_at ORDER BY standing > sender_types DESC, occurred_at DESC, standing DESC))[1]
             AS occurred_at,
           min(occurred_at) FILTER (WHERE type = 'dispatched') AS dispatched_at,
           min(occurred_at) FILTER (WHERE type = 'delivered') AS delivered_at,
           min(occurred_at) FILTER (WHERE type = 'bounced') AS bounced_at,
           min(occurred_at) FILTER (WHERE type = 'complained') AS complained_at,
           min(occurred_at) FILTER (WHERE type = 'suppressed') AS suppressed_at,
           bool_or(is_final) AS terminal
      FROM report GROUP BY delivery_id
  -- Whether it is newer than what the row points to.
  ), compared AS (
    SELECT s.*, (standing > sender_types, occurred_at, standing)
                > (held_standing > sender_types, last_event_at, held_standing) AS newer
      FROM summary AS s
     CROSS JOIN LATERAL (SELECT last_event_at, coalesce(array_position(known, last_event_type), 0) AS held_standing
                           FROM {schema}.mailglass_deliveries WHERE id = s.delivery_id OFFSET 0) AS d
  )
  UPDATE {schema}.mailglass_deliveries AS d
     SET last_event_type = CASE WHEN c.newer THEN known[c.standing] ELSE d.last_event_type END,
         last_event_at = CASE WHEN c.newer THEN c.occurred_at ELSE d.last_event_at END,
         terminal = d.terminal OR c.terminal,
         dispatched_at = least(d.dispatched_at, c.dispatched_at),
         delivered_at = least(d.delivered_at, c.delivered_at),
         bounced_at = least(d.bounced_at, c.bounced_at),
         complained_at = least(d.complained_at, c.complained_at),
         suppressed_at = least(d.suppressed_at, c.suppressed_at),
         lock_version = d.lock_version + 1,
         updated_at = now()::timestamp
    FROM compared AS c
   WHERE d.id = c.delivery_id
     AND (c.newer
          OR (d.terminal, d.dispatched_at, d.delivered_at, d.bounced_at, d.complained_at, d.suppressed_at)
             IS DISTINCT FROM
             (d.terminal OR c.terminal, least(d.dispatched_at, c.dispatched_at), least(d.delivered_at, c.delivered_at),
              least(d.bounced_at, c.bounced_at), least(d.complained_at, c.complained_at),
              least(d.suppressed_at, c.suppressed_at)));
  GET DIAGNOSTICS changed = ROW_COUNT;
  RETURN changed;
END;
$$;
