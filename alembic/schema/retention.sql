-- Retention: the only way to delete from the ledger, and only on tables that `migrate` made. CREATE OR REPLACE keeps
-- the grants. Each function that deletes is one batch of a walk; the caller commits it and passes its cursor to the next.

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

-- step: function mailglass_reconcile_is_old_event_v1 [made here]
-- Whether an event may be deleted at an age of so many days. By its id, whose index is in the order of time, so only a
-- UUIDv7; and by its time of insertion, because the clock that made the id may have been slow. Inlined, as in prune.sql.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_is_old_event_v1(id uuid, inserted_at timestamp, days integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
SELECT id OPERATOR(pg_catalog.<)
         CAST(pg_catalog.rpad(pg_catalog.lpad(pg_catalog.to_hex(CAST(
           EXTRACT(epoch FROM {schema}.mailglass_reconcile_days_ago_v1(days)) OPERATOR(pg_catalog.*) 1000
           AS pg_catalog.int8)), 12, '0'), 32, '0') AS pg_catalog.uuid)
       AND pg_catalog.substr(CAST(id AS pg_catalog.text), 15, 1) OPERATOR(pg_catalog.=) '7'
       AND inserted_at OPERATOR(pg_catalog.<) {schema}.mailglass_reconcile_days_ago_v1(days)
$$;

-- step: function mailglass_reconcile_is_old_delivery_v1 [made here]
-- Whether a delivery without events may be deleted at an age of so many days, whatever its id.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_is_old_delivery_v1(
  inserted_at timestamp, last_event_at timestamp, days integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
SELECT inserted_at OPERATOR(pg_catalog.<) {schema}.mailglass_reconcile_days_ago_v1(days)
       AND last_event_at OPERATOR(pg_catalog.<) {schema}.mailglass_reconcile_days_ago_v1(days)
$$;

-- step: function mailglass_reconcile_hold_expired_v1
-- Keeps retention from deleting expired orphans until the transaction ends: the caller links one. It has its owner's
-- rights, and the lock is one that only the owner and who may call this can take. It locks the table, which never has
-- more than two rows: a row is there only if an age is stored.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_hold_expired_v1()
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  LOCK TABLE {schema}.mailglass_reconcile_retention IN ROW SHARE MODE;
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_reconcile_hold_expired_v1() FROM PUBLIC;

-- step: function mailglass_reconcile_prune_events_v1 [made here]
-- Deletes old events: of each delivery all, with the orphans linked to it, or none; and orphans that have expired. An
-- event that a handler waits for or has given up on keeps its delivery's events. Its cursor is the last id of the page.
-- It counts the expired orphans that it has left, because a session links one.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_prune_events_v1(
    days integer, size integer, INOUT after_id uuid, OUT deleted bigint, OUT kept bigint)
  LANGUAGE plpgsql SECURITY DEFINER
{our_settings} AS $$
DECLARE
  loose uuid[];
  owners uuid[];
  held uuid[];
  whole uuid[];
BEGIN
  PERFORM {schema}.mailglass_reconcile_require_age_v1(CAST('mailglass_events' AS text), days);

  WITH page AS MATERIALIZED (
    SELECT e.id, e.tenant_id, e.delivery_id, e.needs_reconciliation AND e.delivery_id IS NULL AS is_orphan
      FROM {schema}.mailglass_events AS e
     WHERE e.id > after_id AND {schema}.mailglass_reconcile_is_old_event_v1(e.id, e.inserted_at, days)
     ORDER BY e.id LIMIT size
  -- A delivery belongs to the page that has its newest event: each is gathered once, and one with a newer event never.
  -- The orphans linked to it go with their `reconciled` events.
  ), owner AS (
    SELECT d.id
      FROM (SELECT DISTINCT delivery_id AS id FROM page WHERE delivery_id IS NOT NULL) AS d
     WHERE ((SELECT e.id FROM {schema}.mailglass_events AS e
              WHERE e.delivery_id = d.id ORDER BY e.occurred_at DESC LIMIT 1) IN (SELECT id FROM page)) IS TRUE
  )
  SELECT CASE WHEN count(*) = size THEN (array_agg(id ORDER BY id DESC))[1] END,
         array_agg(id) FILTER (WHERE is_orphan AND NOT EXISTS (
           SELECT FROM {schema}.mailglass_reconcile_link_of_v1(id, tenant_id) OFFSET 0)),
         ARRAY(SELECT id FROM owner)
    INTO after_id, loose, owners FROM page;

  -- Whoever writes for a delivery locks it, if only FOR KEY SHARE: what is locked is left to the next prune. What is
  -- gone needs no lock.
  SELECT array_agg(l.id) INTO held
    FROM (SELECT d.id FROM {schema}.mailglass_deliveries AS d
           WHERE d.id = ANY (owners) ORDER BY d.id FOR UPDATE SKIP LOCKED) AS l;
  SELECT array_agg(o.id) INTO whole
    FROM unnest(owners) AS o (id)
   WHERE o.id = ANY (held)
      OR NOT EXISTS (SELECT FROM {schema}.mailglass_deliveries AS d WHERE d.id = o.id OFFSET 0);

  -- Whoever links an expired orphan holds a lock that conflicts: then such orphans are left to the next prune.
  kept := 0;
  IF loose IS NOT NULL THEN
    BEGIN
      LOCK TABLE {schema}.mailglass_reconcile_retention IN EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
      kept := cardinality(loose);
      loose := NULL;
    END;
  END IF;

  -- A statement of its own, which sees what was committed before the locks were there. The newest event comes first: one
  -- that was appended meanwhile costs one probe.
  SELECT array_agg(w.id) INTO whole
    FROM unnest(whole) AS w (id)
   WHERE (SELECT true FROM {schema}.mailglass_events AS e
           WHERE e.delivery_id = w.id
             AND NOT {schema}.mailglass_reconcile_is_old_event_v1(e.id, e.inserted_at, days)
           ORDER BY e.occurred_at DESC LIMIT 1) IS NULL;

  -- Not in the function's definition, where only a superuser may give a value to a setting that no extension has.
  PERFORM set_config('mailglass_reconcile.retention', 'on', true);
  WITH attached AS MATERIALIZED (
    SELECT w.id AS owner, e.id, e.tenant_id,
           {schema}.mailglass_reconcile_orphan_of_v1(e.type, e.idempotency_key) AS orphan_id
      FROM unnest(whole) AS w (id) JOIN {schema}.mailglass_events AS e ON e.delivery_id = w.id
  ), members AS MATERIALIZED (
    SELECT owner, id, true AS is_old FROM attached
     UNION ALL
    SELECT a.owner, o.id, {schema}.mailglass_reconcile_is_old_event_v1(o.id, o.inserted_at, days)
      FROM attached AS a
      JOIN {schema}.mailglass_events AS o ON o.id = a.orphan_id AND o.needs_reconciliation AND o.delivery_id IS NULL
           AND o.tenant_id IS NOT DISTINCT FROM a.tenant_id
  ), staying AS MATERIALIZED (
    SELECT m.owner FROM members AS m
     WHERE NOT m.is_old
        OR EXISTS (SELECT FROM {schema}.mailglass_handler_outbox AS h
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
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_reconcile_prune_events_v1(integer, integer, uuid) FROM PUBLIC;

-- step: function mailglass_reconcile_prune_deliveries_v1 [made here]
-- Deletes old deliveries that have no event left. Its cursor is the last row of the page in the order of the index.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_prune_deliveries_v1(
    days integer, size integer, INOUT after_tenant text, INOUT after_provider text, INOUT after_time timestamp,
    INOUT after_id uuid, OUT deleted bigint)
  LANGUAGE plpgsql SECURITY DEFINER
{our_settings} AS $$
DECLARE
  held uuid[];
BEGIN
  PERFORM {schema}.mailglass_reconcile_require_age_v1(CAST('mailglass_deliveries' AS text), days);

  -- The next old deliveries of the tenant and provider, then of those after them.
  WITH page AS MATERIALIZED (
    SELECT l.*
      FROM {schema}.mailglass_reconcile_senders_v1(after_tenant, after_provider) AS s
     CROSS JOIN LATERAL (
             SELECT s.tenant_id, s.provider, d.inserted_at, d.id
               FROM {schema}.mailglass_deliveries AS d
              WHERE d.tenant_id = s.tenant_id AND coalesce(d.provider, '') = s.provider
                AND {schema}.mailglass_reconcile_is_old_delivery_v1(d.inserted_at, d.last_event_at, days)
                AND (d.inserted_at, d.id)
                    > (CASE WHEN (s.tenant_id, s.provider) = (after_tenant, after_provider) THEN after_time
                            ELSE '-infinity' END, after_id)
              ORDER BY d.inserted_at, d.id LIMIT size) AS l
     LIMIT size
  ), locking AS MATERIALIZED (
    SELECT d.id FROM {schema}.mailglass_deliveries AS d
     WHERE d.id = ANY (ARRAY(SELECT p.id FROM page AS p))
       AND NOT EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.delivery_id = d.id OFFSET 0)
     ORDER BY d.id FOR UPDATE SKIP LOCKED
  )
  SELECT CASE WHEN count(*) OVER () = size THEN p.tenant_id END, p.provider, p.inserted_at, p.id,
         ARRAY(SELECT k.id FROM locking AS k)
    INTO after_tenant, after_provider, after_time, after_id, held
    FROM page AS p ORDER BY p.tenant_id DESC, p.provider DESC, p.inserted_at DESC, p.id DESC LIMIT 1;

  -- A statement of its own, which sees the events that were committed before the locks were there.
  WITH removed AS (
    DELETE FROM {schema}.mailglass_deliveries AS d
     WHERE d.id = ANY (held)
       AND NOT EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.delivery_id = d.id OFFSET 0)
    RETURNING id
  )
  SELECT count(*) INTO deleted FROM removed;
END;
$$;

REVOKE ALL
  ON FUNCTION {schema}.mailglass_reconcile_prune_deliveries_v1(integer, integer, text, text, timestamp, uuid) FROM PUBLIC;
