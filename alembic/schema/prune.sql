-- What the daily prune removes and repairs. Its statements, its preview and the doctor share these; they are inlined, so
-- that indexes serve, and name Postgres's functions, operators and types with pg_catalog.

-- step: function mailglass_reconcile_days_ago_v1
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_days_ago_v1(days integer)
RETURNS timestamp LANGUAGE sql STABLE AS $$
SELECT (pg_catalog.now() AT TIME ZONE 'UTC') OPERATOR(pg_catalog.-) pg_catalog.make_interval(days => days)
$$;

-- step: function mailglass_reconcile_is_past_retention_v1
-- Whether a row has a state of which rows are kept for so many days, and is older: a raw webhook from its insertion on, a
-- job from its end on.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_is_past_retention_v1(
  state text, kept_from timestamp, pruned_state text, days integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
SELECT state OPERATOR(pg_catalog.=) pruned_state
       AND kept_from OPERATOR(pg_catalog.<) {schema}.mailglass_reconcile_days_ago_v1(days)
$$;

-- step: function mailglass_reconcile_is_expired_v1
-- Whether an open orphan is older than the maximum age.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_is_expired_v1(arrived_at timestamp, max_age_minutes integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
SELECT arrived_at OPERATOR(pg_catalog.<=)
       ((pg_catalog.now() AT TIME ZONE 'UTC') OPERATOR(pg_catalog.-) pg_catalog.make_interval(mins => max_age_minutes))
$$;

-- step: function mailglass_reconcile_settled_v1
-- A row if an open orphan is linked, or is not in the ledger. OFFSET 0, here and below, so that each orphan is probed
-- for: with stale statistics, hashing all `reconciled` events looks cheap.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_settled_v1(orphan_id uuid, orphan_tenant text)
RETURNS TABLE (is_settled boolean) LANGUAGE sql STABLE AS $$
SELECT true
 WHERE EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(orphan_id, orphan_tenant) OFFSET 0)
    OR NOT EXISTS (SELECT FROM {schema}.mailglass_events AS e WHERE e.id OPERATOR(pg_catalog.=) orphan_id OFFSET 0)
$$;

-- step: function mailglass_reconcile_missing_v1
-- A row if an orphan of the ledger should be among the open ones, and is not.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_missing_v1(orphan_id uuid, orphan_tenant text)
RETURNS TABLE (is_missing boolean) LANGUAGE sql STABLE AS $$
SELECT true
 WHERE pg_catalog.length(orphan_tenant) OPERATOR(pg_catalog.<=) 1000
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_open_orphans AS o
                    WHERE o.event_id OPERATOR(pg_catalog.=) orphan_id OFFSET 0)
   AND NOT EXISTS (SELECT FROM {schema}.mailglass_reconcile_link_of_v1(orphan_id, orphan_tenant) OFFSET 0)
$$;

-- step: function mailglass_reconcile_arrival_of_v1
-- When an orphan arrived that the trigger did not see: the millisecond of its UUIDv7, or else its time of insertion, which
-- may be the local time of its session.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_arrival_of_v1(orphan_id uuid, inserted_at timestamp)
RETURNS TABLE (arrived_at timestamp) LANGUAGE sql STABLE AS $$
SELECT least(CASE WHEN pg_catalog.substr(CAST(orphan_id AS pg_catalog.text), 15, 1) OPERATOR(pg_catalog.=) '7'
                       AND m.made_at OPERATOR(pg_catalog.>) (inserted_at OPERATOR(pg_catalog.-) interval '1 day')
                       AND m.made_at OPERATOR(pg_catalog.<) (inserted_at OPERATOR(pg_catalog.+) interval '1 day')
                  THEN m.made_at ELSE inserted_at END, pg_catalog.now() AT TIME ZONE 'UTC')
  FROM (SELECT pg_catalog.to_timestamp(CAST(CAST(CAST(
                 'x' OPERATOR(pg_catalog.||) pg_catalog.left(pg_catalog.replace(CAST(orphan_id AS pg_catalog.text), '-', ''), 12)
                 AS pg_catalog.bit(48)) AS pg_catalog.int8) AS pg_catalog.float8)
                 OPERATOR(pg_catalog./) 1000.0) AT TIME ZONE 'UTC' AS made_at) AS m
$$;
