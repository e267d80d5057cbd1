-- How orphans are linked.

-- step: function mailglass_reconcile_close_v1
-- Closes open orphans, and returns those that it has closed: what the caller has linked, and of the others what another
-- session has. It has its owner's rights, so that a role which may link needs no DELETE. Its snapshot is newer than that
-- of the claim: it has the events and the ids that other sessions stored until then.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_close_v1(event_ids uuid[], are_linked boolean[])
RETURNS uuid[] LANGUAGE plpgsql SECURITY DEFINER
{our_settings} AS $$
#variable_conflict use_column
DECLARE
  closed_ids uuid[];
BEGIN
  WITH closed AS (
    DELETE FROM {schema}.mailglass_open_orphans AS o
     USING unnest(event_ids, are_linked) AS c (event_id, is_linked)
     WHERE o.event_id = c.event_id
       AND (c.is_linked
            OR EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(o.event_id, o.tenant_id) OFFSET 0))
    RETURNING o.event_id, o.ids
  ), removed AS (
    DELETE FROM {schema}.mailglass_open_orphan_ids
     WHERE event_id = ANY (ARRAY(SELECT c.event_id FROM closed AS c WHERE c.ids > 0))
  )
  SELECT array_agg(c.event_id) INTO closed_ids FROM closed AS c;
  RETURN closed_ids;
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_reconcile_close_v1(uuid[], boolean[]) FROM PUBLIC;

-- step: function mailglass_reconcile_link_v1
-- Links orphans, given with their deliveries, the ids of the events to append and more metadata for these: claims,
-- appends, projects, enqueues handlers' jobs, and closes. Nothing is waited for: a pair is left out if the orphan is not
-- open any more, the delivery is gone or of another tenant, or another session has locked either. Returns what was
-- claimed; without `reconciled_id` if the ledger had the key already. Such an orphan is closed too, unless an event of
-- another kind or tenant has the key.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_link_v1(
  reconciled_ids text, orphan_ids text, owner_ids text, extra_metadata text)
RETURNS TABLE (reconciled_id text, event_id text, delivery_id text, tenant_id text, type text, occurred_at text,
               lag_seconds float8, checked boolean, handled boolean, closed boolean)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
BEGIN
  -- The ledger's trigger closes row by row, for other writers.
  PERFORM set_config('mailglass_reconcile.closes_orphans', 'on', true);
  RETURN QUERY
  -- Orphans that no other session has locked, with the delivery locked in id order.
  WITH claimed AS MATERIALIZED (
    SELECT m.id, o.event_id, d.id AS delivery_id, e.tenant_id, o.arrived_at, left(e.type, 512) AS type, e.occurred_at,
           e.type = ANY (ARRAY(SELECT type FROM {schema}.mailglass_handled_types)) AS handled,
           -- Our writers keep a recipient with the open orphan: of their events it is known whether there was one.
           CASE WHEN starts_with(e.idempotency_key, 'webhook:') THEN m.metadata - 'recipient_checked'
                ELSE m.metadata END AS metadata,
           left(e.metadata ->> 'provider', 512) AS provider,
           -- Mailglass appends the recipient to SES's ids; no address is copied.
           CASE WHEN starts_with(e.metadata ->> 'provider_event_id', (e.metadata ->> 'sns_message_id') || ':')
                THEN left(e.metadata ->> 'sns_message_id', 512)
                ELSE left(e.metadata ->> 'provider_event_id', 512) END AS provider_event_id
      FROM unnest(CAST(reconciled_ids AS uuid[]), CAST(orphan_ids AS uuid[]), CAST(owner_ids AS uuid[]),
                  CAST(extra_metadata AS jsonb[]))
           AS m (id, event_id, delivery_id, metadata)
      JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = m.event_id
      JOIN {schema}.mailglass_events AS e ON e.id = o.event_id
      JOIN {schema}.mailglass_deliveries AS d ON d.id = m.delivery_id AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id
     ORDER BY d.id, o.event_id
       FOR UPDATE OF o SKIP LOCKED
       FOR NO KEY UPDATE OF d SKIP LOCKED
  -- The ledger's unique key decides whether this transaction links it.
  ), appended AS (
    INSERT INTO {schema}.mailglass_events
           (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation, inserted_at)
    SELECT id, tenant_id, delivery_id, 'reconciled', now()::timestamp, 'reconciled:' || event_id,
           jsonb_build_object('reconciled_from_event_id', event_id, 'reconciled_provider', provider,
                              'reconciled_provider_event_id', provider_event_id) || metadata,
           false, now()::timestamp
      FROM claimed
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
  ), reached AS MATERIALIZED (
    SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE
  -- Under the orphan's own type and time.
  ), projected AS MATERIALIZED (
    SELECT {schema}.mailglass_reconcile_project_v1(array_agg(delivery_id), array_agg(type), array_agg(occurred_at),
                                                   array_agg(arrived_at)) AS changed
      FROM reached
  ), closing AS MATERIALIZED (
    SELECT {schema}.mailglass_reconcile_close_v1(array_agg(event_id),
                                                 array_agg(id IN (SELECT id FROM appended))) AS closed_ids
      FROM claimed
  ), {enqueued}
  -- Seconds are subtracted, not times: an arrival may be infinite.
  SELECT CASE WHEN id IN (SELECT id FROM appended) THEN id::text END, event_id::text, delivery_id::text, tenant_id,
         type, to_json(occurred_at) #>> '{}', date_part('epoch', now()::timestamp) - date_part('epoch', arrived_at),
         metadata -> 'recipient_checked' IS NULL, handled,
         (event_id IN (SELECT unnest(closed_ids) FROM closing)) IS TRUE
    FROM claimed CROSS JOIN projected CROSS JOIN closing;
  PERFORM set_config('mailglass_reconcile.closes_orphans', 'off', true);
END;
$$;
