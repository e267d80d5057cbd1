-- The handlers' outbox, and the types that have handlers.

-- step: table mailglass_handler_outbox
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

-- step: index mailglass_handler_outbox_due_idx
CREATE INDEX mailglass_handler_outbox_due_idx
  ON {schema}.mailglass_handler_outbox (state, type, least(attempts, 1), next_at) WHERE state <> 'dispatched';

-- step: index mailglass_handler_outbox_finished_idx
CREATE INDEX mailglass_handler_outbox_finished_idx
  ON {schema}.mailglass_handler_outbox (finished_at) WHERE state = 'dispatched';

-- step: table mailglass_handled_types
CREATE TABLE {schema}.mailglass_handled_types (
  type    text PRIMARY KEY,
  seen_at timestamp NOT NULL
);
COMMENT ON TABLE {schema}.mailglass_handled_types IS
  'mailglass-reconcile: the types of events that handlers run on, and when a dispatcher last had a handler of each';
