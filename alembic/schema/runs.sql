-- The history of runs.

-- step: table mailglass_reconcile_runs
CREATE TABLE {schema}.mailglass_reconcile_runs (
  id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  started_at         timestamp NOT NULL,
  finished_at        timestamp NOT NULL,
  kind               text NOT NULL,
  origin             text NOT NULL,
  tenant_id          text,
  status             text NOT NULL,
  error              text,
  runs               bigint NOT NULL DEFAULT 1,
  scanned            bigint NOT NULL DEFAULT 0,
  linked             bigint NOT NULL DEFAULT 0,
  linked_unchecked   bigint NOT NULL DEFAULT 0,
  unmatched          bigint NOT NULL DEFAULT 0,
  unmatchable        bigint NOT NULL DEFAULT 0,
  ambiguous          bigint NOT NULL DEFAULT 0,
  tenant_mismatch    bigint NOT NULL DEFAULT 0,
  recipient_mismatch bigint NOT NULL DEFAULT 0,
  skipped            bigint NOT NULL DEFAULT 0,
  failed             bigint NOT NULL DEFAULT 0,
  published          bigint NOT NULL DEFAULT 0,
  publish_failed     bigint NOT NULL DEFAULT 0,
  expired            bigint NOT NULL DEFAULT 0,
  events             bigint NOT NULL DEFAULT 0,
  deliveries         bigint NOT NULL DEFAULT 0,
  duration_ms        bigint NOT NULL DEFAULT 0,
  remaining          bigint,
  linkable_since     timestamp,
  open_groups        jsonb,
  covered            boolean NOT NULL DEFAULT true,
  ranges             smallint,
  ranges_done        smallint NOT NULL DEFAULT 0,
  CONSTRAINT mailglass_reconcile_runs_kind
    CHECK (kind IN ('full', 'recent', 'range', 'targeted', 'prune', 'dispatch')),
  CONSTRAINT mailglass_reconcile_runs_status CHECK (status IN ('ok', 'partial', 'failed', 'duplicate')),
  CONSTRAINT mailglass_reconcile_runs_times CHECK (isfinite(started_at) AND isfinite(finished_at)),
  CONSTRAINT mailglass_reconcile_runs_groups CHECK (jsonb_typeof(open_groups) = 'array')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE {schema}.mailglass_reconcile_runs IS
  'mailglass-reconcile: one row per run; recent sweeps of one minute share a row, and dispatches of one hour';

-- step: index mailglass_reconcile_runs_minute_idx
-- Recent sweeps of one minute share a row, and dispatches of one hour.
CREATE UNIQUE INDEX mailglass_reconcile_runs_minute_idx ON {schema}.mailglass_reconcile_runs (
  kind, origin, status, coalesce(tenant_id, ''),
  pg_catalog.date_trunc(CASE kind WHEN 'dispatch' THEN 'hour' ELSE 'minute' END, started_at))
  WHERE kind = ANY (ARRAY['recent', 'dispatch']);

-- step: index mailglass_reconcile_runs_kind_idx
CREATE INDEX mailglass_reconcile_runs_kind_idx ON {schema}.mailglass_reconcile_runs (kind, id);
