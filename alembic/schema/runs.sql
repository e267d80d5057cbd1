-- The history of runs.

-- step: index mailglass_reconcile_runs_pkey
CREATE UNIQUE INDEX mailglass_reconcile_runs_pkey ON {schema}.mailglass_reconcile_runs (id);

-- step: index mailglass_reconcile_runs_minute_idx
-- Recent sweeps of one minute share a row, and dispatches of one hour.
CREATE UNIQUE INDEX mailglass_reconcile_runs_minute_idx ON {schema}.mailglass_reconcile_runs (
  kind, origin, status, coalesce(tenant_id, ''),
  pg_catalog.date_trunc(CASE kind WHEN 'dispatch' THEN 'hour' ELSE 'minute' END, started_at))
  WHERE kind = ANY (ARRAY['recent', 'dispatch']);

-- step: index mailglass_reconcile_runs_kind_idx
CREATE INDEX mailglass_reconcile_runs_kind_idx ON {schema}.mailglass_reconcile_runs (kind, id);
