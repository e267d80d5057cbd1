"""Our tables; and those of deliveries, events and webhooks where there are none."""

from mailglass_reconcile.store.migration.operations import execute, is_new_ledger
from mailglass_reconcile.store.schema import script

revision = "0001p"
down_revision = None

# As Mailglass's own migrations make them, but for the space in each page of deliveries: an event's update stays there,
# because no index has a column that it changes (HOT). With 50, there is room for a new version of every row of a page,
# which one transaction may link.
MAILGLASS_TABLES = """
CREATE TABLE {schema}.mailglass_deliveries (
  id                  uuid PRIMARY KEY,
  tenant_id           text NOT NULL,
  mailable            text NOT NULL,
  stream              text NOT NULL,
  recipient           text NOT NULL,
  recipient_domain    text NOT NULL,
  provider            text,
  provider_message_id text,
  last_event_type     text NOT NULL,
  last_event_at       timestamp NOT NULL,
  terminal            boolean NOT NULL DEFAULT false,
  dispatched_at       timestamp,
  delivered_at        timestamp,
  bounced_at          timestamp,
  complained_at       timestamp,
  suppressed_at       timestamp,
  metadata            jsonb NOT NULL DEFAULT '{}',
  lock_version        integer NOT NULL DEFAULT 1,
  idempotency_key     text,
  status              varchar(255) NOT NULL DEFAULT 'queued',
  last_error          jsonb,
  inserted_at         timestamp NOT NULL,
  updated_at          timestamp NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE {schema}.mailglass_events (
  id                   uuid PRIMARY KEY,
  tenant_id            text NOT NULL,
  delivery_id          uuid,
  type                 text NOT NULL,
  occurred_at          timestamp NOT NULL,
  idempotency_key      text,
  reject_reason        text,
  normalized_payload   jsonb NOT NULL DEFAULT '{}',
  metadata             jsonb NOT NULL DEFAULT '{}',
  trace_id             text,
  needs_reconciliation boolean NOT NULL DEFAULT false,
  inserted_at          timestamp NOT NULL DEFAULT now()
);

CREATE TABLE {schema}.mailglass_webhook_events (
  id                    uuid PRIMARY KEY,
  tenant_id             text NOT NULL,
  provider              text NOT NULL,
  provider_event_id     text NOT NULL,
  event_type_raw        text NOT NULL,
  event_type_normalized text,
  status                text NOT NULL,
  raw_payload           jsonb NOT NULL,
  received_at           timestamp NOT NULL,
  processed_at          timestamp,
  inserted_at           timestamp NOT NULL,
  updated_at            timestamp NOT NULL
);
"""

TABLES = """
CREATE TABLE {schema}.mailglass_handler_outbox (
  event_id    uuid NOT NULL,
  handler     text NOT NULL,
  delivery_id uuid NOT NULL,
  type        text NOT NULL,
  state       text NOT NULL DEFAULT 'waiting',
  attempts    smallint NOT NULL DEFAULT 0,
  next_at     timestamp NOT NULL,
  error       text,
  inserted_at timestamp NOT NULL,
  finished_at timestamp,
  PRIMARY KEY (event_id, handler),
  CONSTRAINT mailglass_handler_outbox_state CHECK (state IN ('waiting', 'done', 'dead'))
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.01, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE {schema}.mailglass_handler_outbox IS
  'mailglass-reconcile: jobs, one for each handler and event';

CREATE TABLE {schema}.mailglass_handled_types (
  type    text NOT NULL,
  handler text NOT NULL,
  seen_at timestamp NOT NULL,
  seen_by text NOT NULL,
  PRIMARY KEY (type, handler)
);
COMMENT ON TABLE {schema}.mailglass_handled_types IS
  'mailglass-reconcile: the handlers of each type of event, and when and which dispatcher last had each';

CREATE TABLE {schema}.mailglass_open_orphans (
  event_id       uuid PRIMARY KEY,
  tenant_id      text NOT NULL,
  arrived_at     timestamp NOT NULL,
  provider       text,
  recipient      text,
  recipient_lost boolean NOT NULL DEFAULT false,
  rank           bigint,
  ids            smallint,
  state          text,
  refused        smallint NOT NULL DEFAULT 0
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE {schema}.mailglass_open_orphans IS
  'mailglass-reconcile: orphans of mailglass_events not yet reconciled';

CREATE TABLE {schema}.mailglass_open_orphan_ids (
  event_id     uuid NOT NULL,
  position     smallint NOT NULL,
  candidate_id text NOT NULL,
  PRIMARY KEY (event_id, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE {schema}.mailglass_open_orphan_ids IS
  'mailglass-reconcile: the message ids under which the delivery of an open orphan may be stored';

CREATE TABLE {schema}.mailglass_reconcile_refusals (
  provider    text NOT NULL,
  tenant_id   text NOT NULL DEFAULT '',
  since       timestamp NOT NULL,
  last_at     timestamp NOT NULL,
  refused     bigint NOT NULL,
  failed      bigint NOT NULL,
  cause       text NOT NULL,
  accepted_at timestamp,
  PRIMARY KEY (provider, tenant_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE {schema}.mailglass_reconcile_refusals IS
  'mailglass-reconcile: the last refused webhooks of each provider, and when one was accepted since';

CREATE TABLE {schema}.mailglass_reconcile_retention (
  relation text PRIMARY KEY,
  days     integer NOT NULL
);
COMMENT ON TABLE {schema}.mailglass_reconcile_retention IS
  'mailglass-reconcile: the least age at which rows of a table may be deleted, as `migrate` of their owner stored it';

CREATE TABLE {schema}.mailglass_reconcile_runs (
  id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  started_at         timestamp NOT NULL,
  finished_at        timestamp NOT NULL,
  kind               text NOT NULL,
  origin             text NOT NULL,
  app                text,
  interval_seconds   integer,
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
  covered_until      timestamp,
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
"""


def upgrade() -> None:
    if is_new_ledger():
        execute(MAILGLASS_TABLES)
        # From now on it tells that `migrate` made the tables, also if this run is interrupted.
        execute(script.steps_of_kind("function", script.MADE_HERE)["mailglass_raise_immutability"].sql)
    execute(TABLES)
