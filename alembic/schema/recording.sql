-- How webhooks, sends and single events are recorded.

-- step: function mailglass_reconcile_failure_v1
-- An error that a function has caught, as README.md says: without a message, which may quote a value. NULL if it concerns
-- the whole transaction, and must be raised again.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_failure_v1(
  error_state text, message text, error_context text)
RETURNS text LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN left(error_state, 2) <> ALL ('{08,25,40,53,57,58,XX}')
            THEN json_build_object(
                   'sqlstate', error_state, 'context', error_context,
                   'message', CASE error_state WHEN '42501' THEN message END)::text END
$$;

-- step: function mailglass_reconcile_append_event_v1
-- Appends one event, unless the ledger has its key: then no row is returned. If its tenant has no such delivery, nothing
-- is appended, and the row has no id. Its delivery is locked against retention, which deletes deliveries without events;
-- sweeps and other writers are not held up.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_append_event_v1(entry text)
RETURNS TABLE (event_id text, failure text)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
DECLARE
  error_context text;
BEGIN
  RETURN QUERY
  WITH n AS MATERIALIZED (
    SELECT n.*, d.held
      FROM json_to_record(CAST(entry AS json))
             AS n (id uuid, tenant_id text, delivery_id uuid, type text, occurred_at timestamp, idempotency_key text,
                   reject_reason text, metadata jsonb, needs_reconciliation boolean)
      LEFT JOIN LATERAL (SELECT id AS held FROM {schema}.mailglass_deliveries
                          WHERE id = n.delivery_id AND tenant_id IS NOT DISTINCT FROM n.tenant_id FOR KEY SHARE) AS d
        ON true
  ), appended AS (
    INSERT INTO {schema}.mailglass_events
           (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, metadata,
            needs_reconciliation, inserted_at)
    SELECT id, tenant_id, held, type, occurred_at, idempotency_key, reject_reason, metadata, needs_reconciliation,
           now()::timestamp
      FROM n WHERE delivery_id IS NOT DISTINCT FROM held
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
  )
  SELECT id::text, NULL::text FROM appended
   UNION ALL
  SELECT NULL, NULL FROM n WHERE delivery_id IS DISTINCT FROM held;
{catch_failure}
  RETURN QUERY SELECT NULL::text, failure;
END;
$$;

-- step: function mailglass_reconcile_append_v1
-- Appends a webhook's events, each with its delivery or as an orphan, which is stored with the keys and the state that
-- its writer knows; projects what is attached, and enqueues handlers' jobs. Returns what is new: with its delivery, or
-- with none.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_append_v1(entries text)
RETURNS TABLE (event_id text, delivery_id text, failure text)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
DECLARE
  error_context text;
BEGIN
  RETURN QUERY
  -- Each event, and its delivery as another transaction committed it last, which this statement's snapshot may not have.
  -- In the order of the deliveries: two transactions wait for each other one way only. One that is gone leaves an orphan.
  WITH n AS MATERIALIZED (
    SELECT n.*, d.held
      FROM (SELECT * FROM json_to_recordset(CAST(entries AS json))
                          AS n (id uuid, tenant_id text, delivery_id uuid, type text, occurred_at timestamp,
                                idempotency_key text, reject_reason text, metadata jsonb, provider text, recipient text,
                                rank bigint, ids text[], lost bool, state text)
             ORDER BY delivery_id) AS n
      LEFT JOIN LATERAL (SELECT id AS held FROM {schema}.mailglass_deliveries
                          WHERE id = n.delivery_id FOR NO KEY UPDATE) AS d ON true
  -- In the order of the keys, for the same reason.
  ), appended AS (
    INSERT INTO {schema}.mailglass_events
           (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, metadata,
            needs_reconciliation, inserted_at)
    SELECT id, tenant_id, held, type, occurred_at, idempotency_key, reject_reason, metadata, held IS NULL,
           now()::timestamp
      FROM n ORDER BY idempotency_key COLLATE "C"
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id, delivery_id
  ), orphans AS (
    SELECT * FROM n WHERE (id IN (SELECT id FROM appended WHERE delivery_id IS NULL)) IS TRUE
  -- The ledger's trigger finds the orphans' rows there already, with what their writer knows.
  ), opened AS (
    INSERT INTO {schema}.mailglass_open_orphans
           (event_id, tenant_id, arrived_at, provider, recipient, rank, ids, recipient_lost, state)
    SELECT id, tenant_id, now()::timestamp, provider, recipient, rank,
           CASE WHEN rank IS NOT NULL THEN cardinality(ids) END, recipient IS NULL AND lost,
           -- Its delivery was there a moment ago.
           CASE WHEN delivery_id IS NULL THEN state END
      FROM orphans
  ), named AS (
    INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
    SELECT o.id, c.position, c.id
      FROM orphans AS o CROSS JOIN LATERAL unnest(o.ids) WITH ORDINALITY AS c (id, position)
  ), reached AS MATERIALIZED (
    SELECT id AS event_id, held AS delivery_id, type, occurred_at
      FROM n WHERE (id IN (SELECT id FROM appended WHERE delivery_id IS NOT NULL)) IS TRUE
  ), projected AS MATERIALIZED (
    SELECT CASE WHEN count(*) > 0
                THEN {schema}.mailglass_reconcile_project_v1(
                       array_agg(delivery_id), array_agg(type), array_agg(occurred_at),
                       array_agg(now()::timestamp)) END AS changed
      FROM reached
  ), {enqueued}
  SELECT id::text, delivery_id::text, NULL::text FROM appended CROSS JOIN projected;
{catch_failure}
  RETURN QUERY SELECT NULL::text, NULL::text, failure;
END;
$$;

-- step: function mailglass_reconcile_store_sends_v1
-- Stores sends: for each that is new its first event and its delivery, as projecting the event would leave it; and
-- enqueues handlers' jobs. Returns the deliveries of what was recorded before, by key, and a row with `events_wait` if
-- an event may wait for one of the message ids: then nothing is stored, unless `even_if_open` is true.
-- `status`, `idempotency_key` and `last_error` are left out: not every Mailglass has them.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_store_sends_v1(
  event_ids text, delivery_ids text, types text, times text, keys text, entries text, recipients text, domains text,
  message_ids text, shared text, tenant text, even_if_open text, spellings text, provider_name text, mailable_name text,
  stream_name text, delivery_metadata text)
RETURNS TABLE (key text, delivery_id text, events_wait boolean, failure text)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
DECLARE
  error_context text;
BEGIN
  RETURN QUERY
  WITH sent AS MATERIALIZED (
    SELECT s.*, {schema}.mailglass_reconcile_credible_v1(s.occurred_at, now()::timestamp) AS reported_at
      FROM unnest(CAST(event_ids AS uuid[]), CAST(delivery_ids AS uuid[]), CAST(types AS text[]),
                  CAST(times AS timestamp[]), CAST(keys AS text[]), CAST(entries AS jsonb[]),
                  CAST(recipients AS text[]), CAST(domains AS text[]), CAST(message_ids AS text[]),
                  CAST(shared AS boolean[]))
           AS s (event_id, delivery_id, type, occurred_at, key, entry, recipient, domain, message_id, shared)
  ), early AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM sent AS s
                    WHERE (SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids
                            WHERE candidate_id >= s.message_id AND candidate_id <= s.message_id
                            ORDER BY candidate_id LIMIT 1) IS NOT NULL) AS any_open
  -- Once per key, in their order: two transactions wait for each other one way only.
  ), appended AS (
    INSERT INTO {schema}.mailglass_events
           (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation, inserted_at)
    SELECT event_id, tenant, delivery_id, type, occurred_at, key, entry, false, now()::timestamp
      FROM sent WHERE CAST(even_if_open AS boolean) OR NOT (SELECT any_open FROM early) ORDER BY key COLLATE "C"
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
  -- With the provider that its delivery gets. None if another recipient or delivery has the id: a unique index allows
  -- one row per provider and id. None if Mailglass made the table, whose ingest would find the delivery by it and keep
  -- the event to itself: Mailglass has `mailglass_suppressions`, and there is no retention. And with what projecting the
  -- event would leave: the projection itself would write each row a second time.
  ), reached AS MATERIALIZED (
    SELECT s.*, type <> 'dispatched' AS terminal, CASE WHEN type = 'dispatched' THEN reported_at END AS dispatched_at,
           CASE WHEN s.shared
                     OR (SELECT to_regclass('{schema}.mailglass_suppressions') IS NOT NULL
                                OR to_regprocedure(
                                     '{schema}.mailglass_reconcile_prune_events_v1(integer, integer, uuid)') IS NULL)
                     OR (SELECT true FROM {schema}.mailglass_deliveries AS d
                          WHERE hashtextextended(d.provider_message_id, 0) = hashtextextended(s.message_id, 0)
                            AND d.provider_message_id = s.message_id
                            AND (num_nulls(d.provider) = 1 OR d.provider = ANY (CAST(spellings AS text[]))) LIMIT 1)
                THEN NULL ELSE provider_name END AS provider
      FROM sent AS s WHERE (s.event_id IN (SELECT id FROM appended)) IS TRUE
  ), named AS (
    INSERT INTO {schema}.mailglass_deliveries
           (id, tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id,
            last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
    SELECT delivery_id, tenant, mailable_name, stream_name, recipient, domain, provider, message_id,
           type, reported_at, dispatched_at, terminal, CAST(delivery_metadata AS jsonb), now()::timestamp, now()::timestamp
      FROM reached WHERE provider IS NOT NULL ORDER BY message_id COLLATE "C"
        ON CONFLICT (provider, provider_message_id) WHERE provider_message_id IS NOT NULL DO NOTHING
    RETURNING id
  -- Again those that another transaction has stored under the same provider and id: ON CONFLICT changes no row of ours.
  ), unnamed AS (
    INSERT INTO {schema}.mailglass_deliveries
           (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
            last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
    SELECT delivery_id, tenant, mailable_name, stream_name, recipient, domain, message_id,
           type, reported_at, dispatched_at, terminal, CAST(delivery_metadata AS jsonb), now()::timestamp, now()::timestamp
      FROM reached WHERE delivery_id NOT IN (SELECT id FROM named)
  ), {enqueued}
  SELECT s.key, k.delivery_id::text, false, NULL::text
    FROM sent AS s
    LEFT JOIN LATERAL (SELECT e.delivery_id FROM {schema}.mailglass_events AS e
                        WHERE e.idempotency_key = s.key OFFSET 0) AS k ON true
   WHERE s.event_id NOT IN (SELECT id FROM appended)
   UNION ALL
  SELECT NULL, NULL, true, NULL FROM early WHERE any_open;
{catch_failure}
  RETURN QUERY SELECT NULL::text, NULL::text, false, failure;
END;
$$;

-- step: function mailglass_reconcile_after_commit_v1
-- After a writer's commit: which of the recorded events the ledger holds; and whether anything may be open for the
-- message ids, or stored for the ids of the open events.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_after_commit_v1(
  recorded_ids text, message_ids text, event_ids text)
RETURNS TABLE (present text[], may_match boolean)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT ARRAY(SELECT e.id::text FROM unnest(CAST(recorded_ids AS uuid[])) AS r (id)
                CROSS JOIN LATERAL (SELECT id FROM {schema}.mailglass_events WHERE id = r.id OFFSET 0) AS e),
         EXISTS (SELECT FROM unnest(CAST(message_ids AS text[])) AS s (message_id)
                  WHERE (SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids
                          WHERE candidate_id >= s.message_id AND candidate_id <= s.message_id
                          ORDER BY candidate_id LIMIT 1) IS NOT NULL)
      OR EXISTS (SELECT FROM unnest(CAST(event_ids AS uuid[])) AS e (id)
                  CROSS JOIN LATERAL (SELECT hashtextextended(candidate_id, 0) AS hash
                                        FROM {schema}.mailglass_open_orphan_ids WHERE event_id = e.id OFFSET 0) AS k
                  WHERE (SELECT hashtextextended(provider_message_id, 0) FROM {schema}.mailglass_deliveries
                          WHERE hashtextextended(provider_message_id, 0) >= k.hash
                            AND hashtextextended(provider_message_id, 0) <= k.hash
                          ORDER BY hashtextextended(provider_message_id, 0) LIMIT 1) IS NOT NULL);
END;
$$;
