-- How orphans are linked.

-- step: function mailglass_reconcile_close_v1
-- Closes open orphans that have their `reconciled` event. It has its owner's rights, so that a role which may link needs
-- no DELETE; it closes nothing else. A statement after the claim: its snapshot has the ids that another session stored
-- until then.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_close_v1(event_ids uuid[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER
{our_settings} AS $$
BEGIN
  WITH closed AS (
    DELETE FROM {schema}.mailglass_open_orphans AS o
     WHERE o.event_id = ANY (event_ids)
       AND EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(o.event_id, o.tenant_id) OFFSET 0)
    RETURNING o.event_id, o.ids
  )
  DELETE FROM {schema}.mailglass_open_orphan_ids
   WHERE event_id = ANY (ARRAY(SELECT c.event_id FROM closed AS c WHERE c.ids > 0));
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_reconcile_close_v1(uuid[]) FROM PUBLIC;

-- step: function mailglass_reconcile_link_v1
-- Links orphans, given with their deliveries, the ids of the events to append and more metadata for these: claims,
-- appends, projects, enqueues handlers' jobs, and closes. Nothing is waited for: a pair is left out if the orphan is not
-- open any more, the delivery is gone or of another tenant, or another session has locked either. Returns what was
-- claimed; without `reconciled_id` if the ledger had the key already. Such an orphan is closed too, unless an event of
-- another kind or tenant has the key.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_link_v1(
  reconciled_ids text, orphan_ids text, owner_ids text, extra_metadata text)
RETURNS TABLE (reconciled_id text, event_id text, delivery_id text, tenant_id text, type text, occurred_at text,
               arrived_at text, lag_seconds float8, checked boolean, handled boolean, closed boolean)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
DECLARE
  claimed_ids uuid[] := '{}';
BEGIN
  -- The ledger's trigger closes row by row, for other writers.
  PERFORM set_config('mailglass_reconcile.closes_orphans', 'on', true);
  FOR reconciled_id, event_id, delivery_id, tenant_id, type, occurred_at, arrived_at, lag_seconds, checked, handled IN
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
  ), {enqueued}
  -- Seconds are subtracted, not times: an arrival may be infinite.
  SELECT CASE WHEN id IN (SELECT id FROM appended) THEN id::text END, event_id::text, delivery_id::text, tenant_id,
         type, to_json(occurred_at) #>> '{}', arrived_at::text,
         (extract(epoch FROM now()::timestamp) - extract(epoch FROM arrived_at))::float8,
         metadata -> 'recipient_checked' IS NULL, handled
    FROM claimed CROSS JOIN projected
  LOOP
    closed := reconciled_id IS NOT NULL;
    IF NOT closed THEN
      -- A statement of its own, whose snapshot has the event that another session has committed meanwhile.
      closed := EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(CAST(event_id AS uuid), tenant_id));
    END IF;
    claimed_ids := claimed_ids || CAST(mailglass_reconcile_link_v1.event_id AS uuid);
    RETURN NEXT;
  END LOOP;
  PERFORM {schema}.mailglass_reconcile_close_v1(claimed_ids);
  PERFORM set_config('mailglass_reconcile.closes_orphans', 'off', true);
END;
$$;
