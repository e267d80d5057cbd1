-- The statements that several writers share, and those of single calls, whose plans stay with the session.
--
-- A function is named with a version, and one that is released never changes: another statement is another function,
-- because processes of the version before may still call this one. They have their caller's rights, so anybody may
-- execute them. Arguments are texts, which every driver passes as they are; those that only other statements call have
-- no settings of their own.
--
-- Steering the planner. Every transaction of ours, and each function here, turns off scans of whole tables and joins by
-- hashing or merging: rows are reached through indexes, whatever statistics say. They may be stale, and then a guess
-- costs minutes. For the same reason
-- - LATERAL (... OFFSET 0) probes once per row, where the planner would make one join of it;
-- - `(x IN (SELECT ...)) IS TRUE` keeps IN a value, where lists would be joined pair by pair;
-- - a scalar subquery with LIMIT 1 stands for EXISTS, which may become a pass over all rows;
-- - IS NOT DISTINCT FROM and num_nulls() stand for = and IS NULL where an index must not be taken;
-- - a range of one value with ORDER BY and LIMIT 1 is cheap for every planner, also if most rows have that value.

-- When what was reported counts as having occurred: its arrival, if its own time cannot be right.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_credible_v1(occurred_at timestamp, arrived_at timestamp)
RETURNS timestamp LANGUAGE sql IMMUTABLE AS $$
SELECT CASE WHEN occurred_at < '2000-01-01' THEN arrived_at
            WHEN occurred_at - interval '5 minutes' > arrived_at THEN arrived_at
            ELSE occurred_at END
$$;

-- Brings deliveries up to date with events, in whatever order they come: each column is a maximum, a minimum or an OR
-- over the events and over what the row holds. The caller has locked the rows. Returns how many changed: lock_version
-- and updated_at move if and only if something else did.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_project_v1(
  delivery_ids uuid[], types text[], times timestamp[], arrivals timestamp[])
RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  -- From the least to the most that a type says of a delivery. What our own side reports is below what a provider does;
  -- any other type moves nothing.
  known CONSTANT text[] := '{unknown,queued,sent,dispatched,subscribed,autoresponded,deferred,delivered,opened,clicked,unsubscribed,suppressed,rejected,failed,bounced,complained}';
  own CONSTANT integer := 4;
  final CONSTANT text[] := '{delivered,suppressed,rejected,failed,bounced,complained}';
  changed bigint;
BEGIN
  -- Each event, and what its delivery's row points to.
  WITH report AS (
    SELECT r.delivery_id, r.type, array_position(known, r.type) AS standing, r.type = ANY (final) AS is_final,
           {schema}.mailglass_reconcile_credible_v1(r.occurred_at, r.arrived_at) AS occurred_at,
           d.last_event_at, coalesce(array_position(known, d.last_event_type), 0) AS held_standing
      FROM unnest(delivery_ids, types, times, arrivals) AS r (delivery_id, type, occurred_at, arrived_at)
     CROSS JOIN LATERAL (SELECT last_event_type, last_event_at FROM {schema}.mailglass_deliveries
                          WHERE id = r.delivery_id OFFSET 0) AS d
     WHERE r.type = ANY (known)
  -- What is reported of each delivery, in one row.
  ), summary AS (
    SELECT delivery_id, last_event_at, held_standing,
           (array_agg(standing ORDER BY standing > own DESC, occurred_at DESC, standing DESC))[1] AS standing,
           (array_agg(occurred_at ORDER BY standing > own DESC, occurred_at DESC, standing DESC))[1] AS occurred_at,
           min(occurred_at) FILTER (WHERE type = 'dispatched') AS dispatched_at,
           min(occurred_at) FILTER (WHERE type = 'delivered') AS delivered_at,
           min(occurred_at) FILTER (WHERE type = 'bounced') AS bounced_at,
           min(occurred_at) FILTER (WHERE type = 'complained') AS complained_at,
           min(occurred_at) FILTER (WHERE type = 'suppressed') AS suppressed_at,
           bool_or(is_final) AS terminal
      FROM report GROUP BY delivery_id, last_event_at, held_standing
  -- Whether it is newer than what the row points to.
  ), compared AS (
    SELECT *, (standing > own, occurred_at, standing) > (held_standing > own, last_event_at, held_standing) AS newer
      FROM summary
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

-- The tenants of a table, in the order of their names: each is found by one probe of an index, where a DISTINCT would
-- read every row. Without settings, because the planner then puts the query in the place of the call: a LIMIT of the
-- caller's ends the walk.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_tenants_of_deliveries_v1()
RETURNS TABLE (tenant_id text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE tenants (tenant_id) AS (
  (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d ORDER BY d.tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d
           WHERE d.tenant_id > t.tenant_id ORDER BY d.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
)
SELECT t.tenant_id FROM tenants AS t WHERE t.tenant_id IS NOT NULL
$$;

CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_tenants_of_events_v1()
RETURNS TABLE (tenant_id text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE tenants (tenant_id) AS (
  (SELECT e.tenant_id FROM {schema}.mailglass_events AS e ORDER BY e.tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.tenant_id > t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
)
SELECT t.tenant_id FROM tenants AS t WHERE t.tenant_id IS NOT NULL
$$;

-- Those that have orphans, open or not, from a name on.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_tenants_of_orphans_v1(from_tenant text)
RETURNS TABLE (tenant_id text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE tenants (tenant_id) AS (
  (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
    WHERE e.needs_reconciliation = true AND e.tenant_id >= from_tenant ORDER BY e.tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.needs_reconciliation = true AND e.tenant_id > t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
)
SELECT t.tenant_id FROM tenants AS t WHERE t.tenant_id IS NOT NULL
$$;

-- Closes open orphans that have their `reconciled` event. It has its owner's rights, so that a role which may link needs
-- no DELETE; it closes nothing else. A statement after the claim: its snapshot has the ids that another session stored
-- until then.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_close_v1(event_ids uuid[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  WITH closed AS (
    DELETE FROM {schema}.mailglass_open_orphans AS o
     WHERE o.event_id = ANY (event_ids)
       AND (SELECT r.type = 'reconciled' AND r.tenant_id IS NOT DISTINCT FROM o.tenant_id
              FROM {schema}.mailglass_events AS r WHERE r.idempotency_key = 'reconciled:' || o.event_id)
    RETURNING o.event_id, o.ids
  )
  DELETE FROM {schema}.mailglass_open_orphan_ids
   WHERE event_id = ANY (ARRAY(SELECT c.event_id FROM closed AS c WHERE c.ids > 0));
END;
$$;

-- Links orphans, given with their deliveries, the ids of the events to append and more metadata for these: claims,
-- appends, projects, hands over to handlers, and closes. Nothing is waited for: a pair is left out if the orphan is not
-- open any more, the delivery is gone or of another tenant, or another session has locked either. Returns what was
-- claimed; without `reconciled_id` if the ledger had the key already. Such an orphan is closed too, unless an event of
-- another kind or tenant has the key.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_link_v1(
  reconciled_ids text, orphan_ids text, owner_ids text, notes text)
RETURNS TABLE (reconciled_id text, event_id text, delivery_id text, tenant_id text, type text, occurred_at text,
               arrived_at text, lag_seconds float8, checked boolean, handled boolean, closed boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
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
                  CAST(notes AS jsonb[]))
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
  ), linked AS MATERIALIZED (
    SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE
  -- Under the orphan's own type and time.
  ), projected AS MATERIALIZED (
    SELECT {schema}.mailglass_reconcile_project_v1(array_agg(delivery_id), array_agg(type), array_agg(occurred_at),
                                                   array_agg(arrived_at)) AS changed
      FROM linked
  -- Without a conflict target, which would need the right to read. Sorted: two transactions wait one way only.
  ), handed_over AS (
    INSERT INTO {schema}.mailglass_handler_outbox (event_id, delivery_id, type, next_at, inserted_at)
    SELECT event_id, delivery_id, type, now()::timestamp, now()::timestamp FROM linked WHERE handled ORDER BY event_id
        ON CONFLICT DO NOTHING
  )
  -- Seconds are subtracted, not times: an arrival may be infinite.
  SELECT CASE WHEN id IN (SELECT id FROM appended) THEN id::text END, event_id::text, delivery_id::text, tenant_id,
         type, to_json(occurred_at) #>> '{}', arrived_at::text,
         (extract(epoch FROM now()::timestamp) - extract(epoch FROM arrived_at))::float8,
         metadata -> 'recipient_checked' IS NULL, handled
    FROM claimed CROSS JOIN projected
  LOOP
    -- A statement of its own, whose snapshot has the event that another session has committed meanwhile.
    closed := reconciled_id IS NOT NULL OR EXISTS (
      SELECT FROM {schema}.mailglass_events AS r
       WHERE r.idempotency_key = 'reconciled:' || mailglass_reconcile_link_v1.event_id AND r.type = 'reconciled'
         AND r.tenant_id IS NOT DISTINCT FROM mailglass_reconcile_link_v1.tenant_id);
    claimed_ids := claimed_ids || CAST(mailglass_reconcile_link_v1.event_id AS uuid);
    RETURN NEXT;
  END LOOP;
  PERFORM {schema}.mailglass_reconcile_close_v1(claimed_ids);
  PERFORM set_config('mailglass_reconcile.closes_orphans', 'off', true);
END;
$$;

-- Appends a webhook's events, each with its delivery or as an orphan, which is stored with the keys and the state that
-- its writer knows; projects what is attached, and hands it over to handlers. Returns what is new: with its delivery, or
-- with none.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_append_v1(given text)
RETURNS TABLE (event_id text, delivery_id text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  -- Each event, and its delivery as another transaction committed it last, which this statement's snapshot may not have.
  -- In the order of the deliveries: two transactions wait for each other one way only. One that is gone leaves an orphan.
  WITH n AS MATERIALIZED (
    SELECT n.*, d.held
      FROM (SELECT * FROM json_to_recordset(CAST(given AS json))
                          AS n (id uuid, tenant_id text, delivery_id uuid, type text, occurred_at timestamp,
                                idempotency_key text, reject_reason text, metadata jsonb, provider text, recipient text,
                                rule text, ids text[], lost bool, state text)
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
           (event_id, tenant_id, arrived_at, provider, recipient, rule, ids, recipient_lost, state)
    SELECT id, tenant_id, now()::timestamp, provider, recipient, rule,
           CASE WHEN rule IS NOT NULL THEN cardinality(ids) END, recipient IS NULL AND lost,
           -- Its delivery was there a moment ago.
           CASE WHEN delivery_id IS NULL THEN state END
      FROM orphans
  ), named AS (
    INSERT INTO {schema}.mailglass_open_orphan_ids (event_id, position, candidate_id)
    SELECT o.id, c.position, c.id
      FROM orphans AS o CROSS JOIN LATERAL unnest(o.ids) WITH ORDINALITY AS c (id, position)
  ), attached AS MATERIALIZED (
    SELECT * FROM n WHERE (id IN (SELECT id FROM appended WHERE delivery_id IS NOT NULL)) IS TRUE
  ), projected AS MATERIALIZED (
    SELECT CASE WHEN count(*) > 0
                THEN {schema}.mailglass_reconcile_project_v1(
                       array_agg(held), array_agg(type), array_agg(occurred_at), array_agg(now()::timestamp)) END
           AS changed
      FROM attached
  -- Without a conflict target, which would need the right to read. Sorted: two transactions wait one way only.
  ), handed_over AS (
    INSERT INTO {schema}.mailglass_handler_outbox (event_id, delivery_id, type, next_at, inserted_at)
    SELECT id, held, type, now()::timestamp, now()::timestamp
      FROM attached WHERE type = ANY (ARRAY(SELECT type FROM {schema}.mailglass_handled_types)) ORDER BY id
        ON CONFLICT DO NOTHING
  )
  SELECT id::text, delivery_id::text FROM appended CROSS JOIN projected;
END;
$$;

-- Stores sends: for each that is new its first event and its delivery, as projecting the event would leave it; and hands
-- the events over to handlers. Returns the deliveries of what was recorded before, by key, and a row that is `open` if
-- an event may wait for one of the message ids: then nothing is stored, unless it is wanted `anyway`.
-- `status`, `idempotency_key` and `last_error` are left out: not every Mailglass has them.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_store_sends_v1(
  event_ids text, delivery_ids text, types text, times text, keys text, entries text, recipients text, domains text,
  message_ids text, several text, tenant text, anyway text, spellings text, provider_name text, mailable_name text,
  stream_name text, delivery_metadata text)
RETURNS TABLE (key text, delivery_id text, open boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  WITH sent AS MATERIALIZED (
    SELECT s.*, {schema}.mailglass_reconcile_credible_v1(s.occurred_at, now()::timestamp) AS reported_at
      FROM unnest(CAST(event_ids AS uuid[]), CAST(delivery_ids AS uuid[]), CAST(types AS text[]),
                  CAST(times AS timestamp[]), CAST(keys AS text[]), CAST(entries AS jsonb[]),
                  CAST(recipients AS text[]), CAST(domains AS text[]), CAST(message_ids AS text[]),
                  CAST(several AS boolean[]))
           AS s (event_id, delivery_id, type, occurred_at, key, entry, recipient, domain, message_id, shared)
  ), waiting AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM sent AS s
                    WHERE (SELECT candidate_id FROM {schema}.mailglass_open_orphan_ids
                            WHERE candidate_id >= s.message_id AND candidate_id <= s.message_id
                            ORDER BY candidate_id LIMIT 1) IS NOT NULL) AS any_open
  -- Once per key, in their order: two transactions wait for each other one way only.
  ), appended AS (
    INSERT INTO {schema}.mailglass_events
           (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, needs_reconciliation, inserted_at)
    SELECT event_id, tenant, delivery_id, type, occurred_at, key, entry, false, now()::timestamp
      FROM sent WHERE CAST(anyway AS boolean) OR NOT (SELECT any_open FROM waiting) ORDER BY key COLLATE "C"
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
  -- With the provider that its delivery gets. None if another recipient or delivery has the id: a unique index allows
  -- one row per provider and id. None if Mailglass made the table, whose ingest would find the delivery by it and keep
  -- the event to itself: Mailglass has `mailglass_suppressions`, and its trigger lets no retention pass.
  ), new AS MATERIALIZED (
    SELECT s.*,
           CASE WHEN s.shared
                     OR (SELECT to_regclass('{schema}.mailglass_suppressions') IS NOT NULL
                                OR NOT EXISTS (
                                     SELECT FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
                                      WHERE t.tgrelid = to_regclass('{schema}.mailglass_events')
                                        AND t.tgname = 'mailglass_events_immutable_trigger'
                                        AND p.prosrc LIKE '%mailglass_reconcile.retention%'))
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
           type, reported_at, CASE WHEN type = 'dispatched' THEN reported_at END, type <> 'dispatched',
           CAST(delivery_metadata AS jsonb), now()::timestamp, now()::timestamp
      FROM new WHERE provider IS NOT NULL ORDER BY message_id COLLATE "C"
        ON CONFLICT (provider, provider_message_id) WHERE provider_message_id IS NOT NULL DO NOTHING
    RETURNING id
  ), unnamed AS (
    INSERT INTO {schema}.mailglass_deliveries
           (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
            last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
    SELECT delivery_id, tenant, mailable_name, stream_name, recipient, domain, message_id,
           type, reported_at, CASE WHEN type = 'dispatched' THEN reported_at END, type <> 'dispatched',
           CAST(delivery_metadata AS jsonb), now()::timestamp, now()::timestamp
      FROM new WHERE delivery_id NOT IN (SELECT id FROM named)
  -- Without a conflict target, which would need the right to read.
  ), handed_over AS (
    INSERT INTO {schema}.mailglass_handler_outbox (event_id, delivery_id, type, next_at, inserted_at)
    SELECT event_id, delivery_id, type, now()::timestamp, now()::timestamp
      FROM new WHERE type = ANY (ARRAY(SELECT type FROM {schema}.mailglass_handled_types)) ORDER BY event_id
        ON CONFLICT DO NOTHING
  )
  SELECT s.key, k.delivery_id::text, false
    FROM sent AS s
    LEFT JOIN LATERAL (SELECT e.delivery_id FROM {schema}.mailglass_events AS e
                        WHERE e.idempotency_key = s.key OFFSET 0) AS k ON true
   WHERE s.event_id NOT IN (SELECT id FROM appended)
   UNION ALL
  SELECT NULL, NULL, true FROM waiting WHERE any_open;
END;
$$;

-- The deliveries that carry one of the ids, at most eleven of each. An id is looked up by its hash, because no value is
-- too long for that; the id itself then decides.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_deliveries_of_ids_v1(message_ids text)
RETURNS TABLE (candidate_id text, delivery_id text, tenant_id text, provider text, recipient text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT c.id, d.id::text, d.tenant_id::text, d.provider::text, d.recipient
    FROM unnest(CAST(message_ids AS text[])) AS c (id)
   CROSS JOIN LATERAL (
           SELECT id, tenant_id, provider, left(recipient, 1000) AS recipient
             FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(c.id, 0) AND provider_message_id = c.id
            LIMIT 11) AS d;
END;
$$;

-- After a writer's commit: which of the recorded events the ledger holds; and whether anything may be open for the
-- message ids, or stored for the ids of the open events.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_after_commit_v1(
  recorded_ids text, message_ids text, event_ids text)
RETURNS TABLE (present text[], may_match boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
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

-- Where the default is another one; a GRANT that changes nothing would be missing from a dump.
DO $$
DECLARE
  made regprocedure;
BEGIN
  FOR made IN SELECT p.oid FROM pg_proc AS p
               WHERE p.pronamespace = '{schema}'::regnamespace AND p.proname LIKE 'mailglass_reconcile_%'
                 AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
  LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', made);
  END LOOP;
END;
$$;
