-- Retention: the only way to delete from the ledger, and only on tables that `migrate` made. CREATE OR REPLACE keeps
-- the grants. Each function is one batch of a walk, by tenant and time; the caller commits it and hands its place on.

-- step: index mailglass_reconcile_retention_pkey
CREATE UNIQUE INDEX mailglass_reconcile_retention_pkey ON {schema}.mailglass_reconcile_retention (relation);

-- step: function mailglass_reconcile_require_age_v1 [made here]
-- Fails if rows of a table may not be deleted at an age of so many days: the owner of the tables, with whose privileges
-- the functions below call this, has stored a higher one, or none. A session that may act as the owner may pass.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_require_age_v1(relation text, days integer)
  RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  least_days CONSTANT integer := (SELECT r.days FROM {schema}.mailglass_reconcile_retention AS r
                                   WHERE r.relation = mailglass_reconcile_require_age_v1.relation);
BEGIN
  IF days < 2 THEN
    RAISE SQLSTATE '22023' USING MESSAGE = 'rows of ' || relation || ' are kept for at least 2 days';
  END IF;
  IF coalesce(days < least_days, true) AND NOT pg_has_role(session_user, current_user, 'MEMBER') THEN
    RAISE insufficient_privilege USING MESSAGE =
      'permission denied to delete rows of ' || relation || coalesce(' before ' || least_days || ' days', '');
  END IF;
END;
$$;

-- step: function mailglass_prune_events [made here]
-- Deletes events that are older than so many days: of each delivery all, with the orphans linked to it, or none; and
-- orphans that have expired. An event that a handler waits for or has given up on keeps its delivery's events.
CREATE OR REPLACE FUNCTION {schema}.mailglass_prune_events(
    days integer, size integer, INOUT after_tenant text, INOUT after_time timestamp, INOUT passed bigint,
    OUT deleted bigint)
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET row_security = off SET jit = off
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
DECLARE
  bound CONSTANT timestamp := (now() AT TIME ZONE 'UTC') - make_interval(days => days);
  ids uuid[];
  tenants text[];
  times timestamp[];
  loose uuid[];
  owners uuid[];
  held uuid[];
  whole uuid[];
BEGIN
  PERFORM {schema}.mailglass_reconcile_require_age_v1('mailglass_events', days);

  -- The next old events of the tenant, then of the tenants after it. Rows of one time have a fixed order in the index;
  -- those that stay are passed by number.
  WITH page AS MATERIALIZED (
    SELECT l.*
      FROM {schema}.mailglass_reconcile_tenants_of_events_v1(after_tenant) AS f
     CROSS JOIN LATERAL (
             SELECT e.id, e.tenant_id, e.inserted_at, e.delivery_id,
                    e.needs_reconciliation AND e.delivery_id IS NULL AS is_orphan
               FROM {schema}.mailglass_events AS e
              WHERE e.tenant_id = f.tenant_id AND e.inserted_at < bound
                AND e.inserted_at >= CASE WHEN f.tenant_id = after_tenant THEN after_time ELSE '-infinity' END
              ORDER BY e.inserted_at
             OFFSET CASE WHEN f.tenant_id = after_tenant THEN passed ELSE 0 END
              LIMIT size) AS l
     LIMIT size
  -- An orphan belongs to the delivery that its `reconciled` event names.
  ), owned AS MATERIALIZED (
    SELECT p.*, coalesce(p.delivery_id, r.delivery_id) AS owner, p.is_orphan AND r.id IS NULL AS is_loose,
           row_number() OVER () AS number
      FROM page AS p
      LEFT JOIN LATERAL (
             SELECT r.* FROM {schema}.mailglass_reconcile_link_of_v1(p.id, p.tenant_id) AS r
              WHERE p.is_orphan OFFSET 0) AS r ON true
  )
  SELECT array_agg(id ORDER BY number), array_agg(tenant_id ORDER BY number), array_agg(inserted_at ORDER BY number),
         array_agg(id) FILTER (WHERE is_loose), array_agg(DISTINCT owner) FILTER (WHERE owner IS NOT NULL)
    INTO ids, tenants, times, loose, owners FROM owned;

  -- Whoever writes for a delivery locks it, if only FOR KEY SHARE: what is locked is left to the next prune. What is
  -- gone needs no lock.
  SELECT array_agg(l.id) INTO held
    FROM (SELECT d.id FROM {schema}.mailglass_deliveries AS d
           WHERE d.id = ANY (owners) ORDER BY d.id FOR UPDATE SKIP LOCKED) AS l;
  SELECT array_agg(o.id) INTO whole
    FROM unnest(owners) AS o (id)
   WHERE o.id = ANY (held)
      OR NOT EXISTS (SELECT FROM {schema}.mailglass_deliveries AS d WHERE d.id = o.id OFFSET 0);

  -- Whoever links an expired orphan holds this lock: while somebody does, such orphans are left to the next prune.
  IF loose IS NOT NULL AND NOT pg_try_advisory_xact_lock(hashtext('mailglass_reconcile expired')) THEN
    loose := NULL;
  END IF;

  -- A statement of its own, which sees what was committed before the locks were there. The newest event comes first, so
  -- that a delivery with many costs one probe if it stays.
  SELECT array_agg(w.id) INTO whole
    FROM unnest(whole) AS w (id)
   WHERE (SELECT true FROM {schema}.mailglass_events AS e
           WHERE e.delivery_id = w.id AND e.inserted_at >= bound ORDER BY e.occurred_at DESC LIMIT 1) IS NULL;

  -- Not in the function's definition, where only a superuser may give a value to a setting that no extension has.
  PERFORM set_config('mailglass_reconcile.retention', 'on', true);
  WITH attached AS MATERIALIZED (
    SELECT w.id AS owner, e.id, e.tenant_id,
           {schema}.mailglass_reconcile_orphan_of_v1(e.type, e.idempotency_key) AS orphan_id
      FROM unnest(whole) AS w (id) JOIN {schema}.mailglass_events AS e ON e.delivery_id = w.id
  ), members AS MATERIALIZED (
    SELECT owner, id FROM attached
     UNION ALL
    SELECT a.owner, o.id
      FROM attached AS a
      JOIN {schema}.mailglass_events AS o ON o.id = a.orphan_id AND o.needs_reconciliation AND o.delivery_id IS NULL
           AND o.tenant_id IS NOT DISTINCT FROM a.tenant_id
  ), staying AS MATERIALIZED (
    SELECT m.owner FROM members AS m
     WHERE EXISTS (SELECT FROM {schema}.mailglass_handler_outbox AS h
                    WHERE h.event_id = m.id AND h.state <> 'done' OFFSET 0)
  ), removed AS (
    DELETE FROM {schema}.mailglass_events
     WHERE id = ANY (ARRAY(
             SELECT m.id FROM members AS m WHERE m.owner NOT IN (SELECT s.owner FROM staying AS s)
              UNION ALL
             SELECT e.id FROM unnest(loose) AS l (id) JOIN {schema}.mailglass_events AS e ON e.id = l.id
              WHERE NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans AS o WHERE o.event_id = l.id OFFSET 0)
                AND NOT EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(e.id, e.tenant_id) OFFSET 0)))
    RETURNING id
  )
  SELECT count(*) INTO deleted FROM removed;
  PERFORM set_config('mailglass_reconcile.retention', 'off', true);

  -- The next place: the last time of this page, after what stays of it.
  IF coalesce(cardinality(ids), 0) < size THEN
    after_tenant := NULL;
    RETURN;
  END IF;
  IF (tenants[size], times[size]) IS DISTINCT FROM (after_tenant, after_time) THEN
    passed := 0;
  END IF;
  after_tenant := tenants[size];
  after_time := times[size];
  passed := passed + (SELECT count(*) FROM unnest(ids, tenants, times) AS p (id, tenant_id, inserted_at)
                       WHERE p.tenant_id = after_tenant AND p.inserted_at = after_time
                         AND EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.id = p.id OFFSET 0));
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_prune_events(integer, integer, text, timestamp, bigint) FROM PUBLIC;

-- step: function mailglass_prune_deliveries [made here]
-- Deletes deliveries that are older than so many days and have no event left.
CREATE OR REPLACE FUNCTION {schema}.mailglass_prune_deliveries(
    days integer, size integer, INOUT after_tenant text, INOUT after_time timestamp, INOUT passed bigint,
    OUT deleted bigint)
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET row_security = off SET jit = off
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off AS $$
DECLARE
  bound CONSTANT timestamp := (now() AT TIME ZONE 'UTC') - make_interval(days => days);
  ids uuid[];
  tenants text[];
  times timestamp[];
  held uuid[];
BEGIN
  PERFORM {schema}.mailglass_reconcile_require_age_v1('mailglass_deliveries', days);

  -- As above, by the time of the latest event, which the delivery's row keeps.
  WITH page AS MATERIALIZED (
    SELECT l.*, row_number() OVER () AS number
      FROM (SELECT n.*
              FROM {schema}.mailglass_reconcile_tenants_of_deliveries_v1(after_tenant) AS f
             CROSS JOIN LATERAL (
                     SELECT d.id, d.tenant_id, d.last_event_at, d.inserted_at
                       FROM {schema}.mailglass_deliveries AS d
                      WHERE d.tenant_id = f.tenant_id AND d.last_event_at < bound
                        AND d.last_event_at >= CASE WHEN f.tenant_id = after_tenant THEN after_time
                                                    ELSE '-infinity' END
                      ORDER BY d.last_event_at
                     OFFSET CASE WHEN f.tenant_id = after_tenant THEN passed ELSE 0 END
                      LIMIT size) AS n
             LIMIT size) AS l
  ), locking AS MATERIALIZED (
    SELECT d.id FROM {schema}.mailglass_deliveries AS d
     WHERE d.id = ANY (ARRAY(SELECT p.id FROM page AS p WHERE p.inserted_at < bound)) ORDER BY d.id
       FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(id ORDER BY number), array_agg(tenant_id ORDER BY number), array_agg(last_event_at ORDER BY number),
         (SELECT array_agg(k.id) FROM locking AS k)
    INTO ids, tenants, times, held FROM page;

  WITH removed AS (
    DELETE FROM {schema}.mailglass_deliveries AS d
     WHERE d.id = ANY (held)
       AND NOT EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.delivery_id = d.id OFFSET 0)
    RETURNING id
  )
  SELECT count(*) INTO deleted FROM removed;

  IF coalesce(cardinality(ids), 0) < size THEN
    after_tenant := NULL;
    RETURN;
  END IF;
  IF (tenants[size], times[size]) IS DISTINCT FROM (after_tenant, after_time) THEN
    passed := 0;
  END IF;
  after_tenant := tenants[size];
  after_time := times[size];
  passed := passed + (SELECT count(*) FROM unnest(ids, tenants, times) AS p (id, tenant_id, last_event_at)
                       WHERE p.tenant_id = after_tenant AND p.last_event_at = after_time
                         AND EXISTS (SELECT FROM {schema}.mailglass_deliveries AS d WHERE d.id = p.id OFFSET 0));
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_prune_deliveries(integer, integer, text, timestamp, bigint) FROM PUBLIC;
