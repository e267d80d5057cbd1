"""The open orphans and the triggers that keep them; the handlers' outbox; Mailglass's tables, if there are none."""

from pathlib import Path

from alembic import context

from mailglass_reconcile.store import schema
from mailglass_reconcile.store.migration import preflight
from mailglass_reconcile.store.migration.steps import Steps

revision = "0001e"
down_revision = None

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
);
CREATE UNIQUE INDEX mailglass_deliveries_provider_msg_id_idx
  ON {schema}.mailglass_deliveries (provider, provider_message_id) WHERE provider_message_id IS NOT NULL;
CREATE UNIQUE INDEX mailglass_deliveries_idempotency_key_unique_idx
  ON {schema}.mailglass_deliveries (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX mailglass_deliveries_tenant_recent_idx ON {schema}.mailglass_deliveries (tenant_id, last_event_at DESC);
CREATE INDEX mailglass_deliveries_tenant_recipient_idx ON {schema}.mailglass_deliveries (tenant_id, recipient);
CREATE INDEX mailglass_deliveries_tenant_stream_terminal_idx
  ON {schema}.mailglass_deliveries (tenant_id, stream, terminal, last_event_at DESC);

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
CREATE UNIQUE INDEX mailglass_events_idempotency_key_idx
  ON {schema}.mailglass_events (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX mailglass_events_delivery_idx
  ON {schema}.mailglass_events (delivery_id, occurred_at) WHERE delivery_id IS NOT NULL;
CREATE INDEX mailglass_events_tenant_recent_idx ON {schema}.mailglass_events (tenant_id, inserted_at DESC);
CREATE INDEX mailglass_events_needs_reconcile_idx
  ON {schema}.mailglass_events (tenant_id, inserted_at) WHERE needs_reconciliation = true;

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
CREATE UNIQUE INDEX mailglass_webhook_events_provider_event_id_idx
  ON {schema}.mailglass_webhook_events (provider, provider_event_id);
CREATE INDEX mailglass_webhook_events_tenant_status_idx
  ON {schema}.mailglass_webhook_events (tenant_id, status) WHERE status IN ('failed', 'dead');
"""

IMMUTABILITY = (Path(__file__).parent / "0001_immutability.sql").read_text()
RETENTION = (Path(__file__).parent / "0001_retention.sql").read_text()
STATEMENTS = (Path(__file__).parent / "0001_statements.sql").read_text()

OPEN_SET = """
CREATE TABLE {schema}.mailglass_open_orphans (
  event_id       uuid PRIMARY KEY,
  tenant_id      text NOT NULL,
  arrived_at     timestamp NOT NULL,
  provider       text,
  recipient      text,
  recipient_lost boolean NOT NULL DEFAULT false,
  rule           text,
  ids            smallint,
  state          text,
  refused        smallint NOT NULL DEFAULT 0
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE {schema}.mailglass_open_orphans IS
  'mailglass-reconcile: orphans of mailglass_events not yet reconciled';
"""

OPEN_SET_IDS = """
CREATE TABLE {schema}.mailglass_open_orphan_ids (
  event_id     uuid NOT NULL,
  position     smallint NOT NULL,
  candidate_id text NOT NULL,
  PRIMARY KEY (event_id, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE {schema}.mailglass_open_orphan_ids IS
  'mailglass-reconcile: the message ids under which the delivery of an open orphan may be stored';
"""

RUNS = """
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
"""

HANDLER_OUTBOX = """
CREATE TABLE {schema}.mailglass_handler_outbox (
  event_id    uuid PRIMARY KEY,
  delivery_id uuid NOT NULL,
  type        text NOT NULL,
  state       text NOT NULL DEFAULT 'waiting',
  attempts    smallint NOT NULL DEFAULT 0,
  next_at     timestamp NOT NULL,
  done        text[] NOT NULL DEFAULT '{}',
  error       text,
  inserted_at timestamp NOT NULL,
  finished_at timestamp,
  CONSTRAINT mailglass_handler_outbox_state CHECK (state IN ('waiting', 'dispatched', 'dead'))
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,
        autovacuum_analyze_scale_factor = 0.01, autovacuum_analyze_threshold = 5000);
COMMENT ON TABLE {schema}.mailglass_handler_outbox IS
  'mailglass-reconcile: events that handlers run on, or have run on';
"""

HANDLED_TYPES = """
CREATE TABLE {schema}.mailglass_handled_types (
  type    text PRIMARY KEY,
  seen_at timestamp NOT NULL
);
COMMENT ON TABLE {schema}.mailglass_handled_types IS
  'mailglass-reconcile: the types of events that handlers run on, and when a dispatcher last had a handler of each';
"""

# The functions run with their owner's rights, so a writer needs rights on the ledger only. Nobody else may put them on
# a table. They read nothing of the ledger: that would cost writers in SERIALIZABLE a failure (SQLSTATE 40001).
TRIGGERS = """
CREATE FUNCTION {schema}.mailglass_open_orphans_add() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  utc CONSTANT timestamp := now() AT TIME ZONE 'UTC';
BEGIN
  -- A row that took the column's default holds now() in its session's time zone.
  INSERT INTO {schema}.mailglass_open_orphans (event_id, tenant_id, arrived_at)
  VALUES (NEW.id, NEW.tenant_id,
          CASE WHEN NEW.inserted_at = now()::timestamp OR NOT isfinite(NEW.inserted_at)
                    OR NEW.inserted_at > utc + interval '5 minutes'
               THEN utc ELSE NEW.inserted_at END)
      ON CONFLICT DO NOTHING;
  RETURN NULL;
END;
$$;

-- A scan of the whole table would read what other writers in SERIALIZABLE remove, and fail them.
CREATE FUNCTION {schema}.mailglass_open_orphans_remove() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
  -- The trigger's condition has checked that the key ends in a UUID. A row that a sweep holds is left to the sweep;
  -- so is one that a sweep has changed since the snapshot of a stricter transaction, for which that is an error.
  BEGIN
    DELETE FROM {schema}.mailglass_open_orphans
     WHERE event_id = (SELECT event_id FROM {schema}.mailglass_open_orphans
                        WHERE event_id = substr(NEW.idempotency_key, 12)::uuid AND tenant_id = NEW.tenant_id
                          FOR UPDATE SKIP LOCKED);
    IF FOUND THEN
      DELETE FROM {schema}.mailglass_open_orphan_ids WHERE event_id = substr(NEW.idempotency_key, 12)::uuid;
    END IF;
  EXCEPTION WHEN serialization_failure THEN
    NULL;
  END;
  RETURN NULL;
END;
$$;

REVOKE ALL ON FUNCTION {schema}.mailglass_open_orphans_add(), {schema}.mailglass_open_orphans_remove() FROM PUBLIC;

-- Tenants are unbounded; very long names would exhaust a sweep's memory, so their orphans are never linked.
-- A sweep closes what it has claimed itself, all at once, and says so for its transaction.
CREATE TRIGGER mailglass_open_orphans_add AFTER INSERT ON {schema}.mailglass_events FOR EACH ROW
  WHEN (NEW.needs_reconciliation AND NEW.delivery_id IS NULL AND length(NEW.tenant_id) <= 1000)
  EXECUTE FUNCTION {schema}.mailglass_open_orphans_add();
CREATE TRIGGER mailglass_open_orphans_remove AFTER INSERT ON {schema}.mailglass_events FOR EACH ROW
  WHEN (NEW.type = 'reconciled'
        AND current_setting('mailglass_reconcile.closes_orphans', true) IS DISTINCT FROM 'on'
        AND NEW.idempotency_key COLLATE "C"
            ~ '^reconciled:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')
  EXECUTE FUNCTION {schema}.mailglass_open_orphans_remove();
"""

GUARD = """
CREATE FUNCTION {schema}.mailglass_events_no_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE SQLSTATE '45A01' USING MESSAGE = 'mailglass_events is append-only; TRUNCATE is forbidden';
END;
$$;
CREATE TRIGGER mailglass_events_no_truncate BEFORE TRUNCATE ON {schema}.mailglass_events
  FOR EACH STATEMENT EXECUTE FUNCTION {schema}.mailglass_events_no_truncate();
"""

DROP_TRIGGERS = """
DROP FUNCTION IF EXISTS {schema}.mailglass_open_orphans_add() CASCADE;
DROP FUNCTION IF EXISTS {schema}.mailglass_open_orphans_remove() CASCADE;
"""

DROP_GUARD = "DROP FUNCTION IF EXISTS {schema}.mailglass_events_no_truncate() CASCADE;"

DROP_RETENTION = """
DROP FUNCTION IF EXISTS {schema}.mailglass_prune_events(integer, integer, text, timestamp, bigint);
DROP FUNCTION IF EXISTS {schema}.mailglass_prune_deliveries(integer, integer, text, timestamp, bigint);
"""

DROP_OPEN_SET = """
DROP TABLE IF EXISTS {schema}.mailglass_open_orphan_ids;
DROP TABLE IF EXISTS {schema}.mailglass_open_orphans;
"""

DROP_RUNS = "DROP TABLE IF EXISTS {schema}.mailglass_reconcile_runs;"
DROP_HANDLERS = """
DROP TABLE IF EXISTS {schema}.mailglass_handler_outbox;
-- Its name in an earlier checkout, which is removed before this revision is installed.
DROP TABLE IF EXISTS {schema}.mailglass_hook_outbox;
DROP TABLE IF EXISTS {schema}.mailglass_handled_types;
"""


def upgrade() -> None:
    attributes = context.config.attributes
    steps: Steps = attributes["steps"]
    if preflight.require(
        attributes["engine"],
        attributes["settings"],
        columns={
            "mailglass_deliveries": (
                "id tenant_id recipient provider provider_message_id last_event_type last_event_at terminal"
                " dispatched_at delivered_at bounced_at complained_at suppressed_at lock_version updated_at inserted_at"
            ),
            "mailglass_events": (
                "id tenant_id delivery_id type occurred_at idempotency_key normalized_payload metadata"
                " needs_reconciliation inserted_at"
            ),
            "mailglass_webhook_events": "id status inserted_at",
        },
    ):
        steps.run(
            "creating Mailglass's tables (none found);"
            " if Mailglass itself will use this database, run its migrations first",
            MAILGLASS_TABLES + IMMUTABILITY + RETENTION,
        )
    elif not preflight.made_by_mailglass(attributes["engine"], attributes["settings"]):
        steps.run("let the prune delete old events", RETENTION)
    steps.create_table(
        "mailglass_open_orphans",
        OPEN_SET,
        columns="event_id tenant_id arrived_at provider recipient recipient_lost rule ids state refused",
    )
    steps.create_table("mailglass_open_orphan_ids", OPEN_SET_IDS, columns="event_id position candidate_id")
    steps.create_table(
        "mailglass_reconcile_runs",
        RUNS,
        columns=(
            "started_at finished_at kind origin tenant_id status error runs scanned linked linked_unchecked unmatched"
            " unmatchable ambiguous tenant_mismatch recipient_mismatch skipped failed published publish_failed"
            " expired events deliveries duration_ms remaining linkable_since open_groups covered ranges ranges_done"
        ),
    )
    steps.create_table(
        "mailglass_handler_outbox",
        HANDLER_OUTBOX,
        columns="event_id delivery_id type state attempts next_at done error inserted_at finished_at",
    )
    steps.create_table("mailglass_handled_types", HANDLED_TYPES, columns="type seen_at")
    steps.create_functions(
        "put the triggers on mailglass_events",
        TRIGGERS,
        replacing=DROP_TRIGGERS,
        names=("mailglass_open_orphans_add", "mailglass_open_orphans_remove"),
    )
    if attributes["guard"]:
        steps.create_functions(
            "guard mailglass_events against TRUNCATE",
            GUARD,
            replacing=DROP_GUARD,
            names=("mailglass_events_no_truncate",),
        )
    steps.run("make the functions that writers and sweeps share", STATEMENTS)
    steps.create_index("mailglass_deliveries_reconcile_idx")
    steps.create_index("mailglass_webhook_events_prune_idx")
    steps.fill_open_set()


def downgrade() -> None:
    steps: Steps = context.config.attributes["steps"]
    steps.run("take the triggers off mailglass_events", DROP_TRIGGERS + DROP_GUARD)
    steps.run("drop the functions of retention", DROP_RETENTION)
    steps.run(
        "drop the functions that writers and sweeps share",
        "\n".join(f"DROP FUNCTION IF EXISTS {{schema}}.{name};" for name in schema.FUNCTIONS),
    )
    steps.drop_index("mailglass_deliveries_reconcile_idx")
    steps.drop_index("mailglass_webhook_events_prune_idx")
    steps.run("drop the open orphans", DROP_OPEN_SET)
    steps.run("drop the history of runs", DROP_RUNS)
    steps.run("drop the handlers' outbox and their types", DROP_HANDLERS)
