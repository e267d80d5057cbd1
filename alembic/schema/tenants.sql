-- The tenants of each table, and their providers.

-- step: function mailglass_reconcile_tenants_of_deliveries_v1
-- The tenants of a table from a name on, in the order of their names: each is found by one probe of an index, where a
-- DISTINCT would read every row. Without settings, because the planner then puts the query in the place of the call: a
-- LIMIT of the caller's ends the walk. So they name Postgres's operators with pg_catalog, whatever the search_path of
-- their caller.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_tenants_of_deliveries_v1(from_tenant text)
RETURNS TABLE (tenant_id text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE tenants (tenant_id) AS (
  (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d
    WHERE d.tenant_id OPERATOR(pg_catalog.>=) from_tenant ORDER BY d.tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT d.tenant_id FROM {schema}.mailglass_deliveries AS d
           WHERE d.tenant_id OPERATOR(pg_catalog.>) t.tenant_id ORDER BY d.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
)
SELECT t.tenant_id FROM tenants AS t WHERE t.tenant_id IS NOT NULL
$$;

-- step: function mailglass_reconcile_tenants_of_orphans_v1
-- Those that have orphans, open or not.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_tenants_of_orphans_v1(from_tenant text)
RETURNS TABLE (tenant_id text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE tenants (tenant_id) AS (
  (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
    WHERE e.needs_reconciliation AND e.tenant_id OPERATOR(pg_catalog.>=) from_tenant ORDER BY e.tenant_id LIMIT 1)
   UNION ALL
  SELECT (SELECT e.tenant_id FROM {schema}.mailglass_events AS e
           WHERE e.needs_reconciliation AND e.tenant_id OPERATOR(pg_catalog.>) t.tenant_id ORDER BY e.tenant_id LIMIT 1)
    FROM tenants AS t WHERE t.tenant_id IS NOT NULL
)
SELECT t.tenant_id FROM tenants AS t WHERE t.tenant_id IS NOT NULL
$$;

-- step: function mailglass_reconcile_senders_v1 [made here]
-- Each tenant with each provider of its deliveries, from a pair on, in the order of the index; '' is no provider.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_senders_v1(from_tenant text, from_provider text)
RETURNS TABLE (tenant_id text, provider text) LANGUAGE sql STABLE AS $$
WITH RECURSIVE senders (tenant_id, provider) AS (
  (SELECT d.tenant_id, coalesce(d.provider, '') FROM {schema}.mailglass_deliveries AS d
    WHERE ROW(d.tenant_id, coalesce(d.provider, '')) OPERATOR(pg_catalog.>=) ROW(from_tenant, from_provider)
    ORDER BY d.tenant_id, coalesce(d.provider, '') LIMIT 1)
   UNION ALL
  SELECT n.tenant_id, n.provider
    FROM senders AS s
   CROSS JOIN LATERAL (
           SELECT d.tenant_id, coalesce(d.provider, '') AS provider FROM {schema}.mailglass_deliveries AS d
            WHERE ROW(d.tenant_id, coalesce(d.provider, '')) OPERATOR(pg_catalog.>) ROW(s.tenant_id, s.provider)
            ORDER BY d.tenant_id, coalesce(d.provider, '') LIMIT 1) AS n
)
SELECT s.tenant_id, s.provider FROM senders AS s
$$;
