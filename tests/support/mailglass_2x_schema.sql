-- The tables of Mailglass 2.5.0 and 2.6.0, put together from its migrations, to be made in the first schema of the
-- search_path: since 2.0 that is `mailglass`. 2.7.0 could not be read.

CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;

CREATE TABLE mailglass_deliveries (
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
  inserted_at         timestamp NOT NULL,
  updated_at          timestamp NOT NULL,
  adapter_ref         text,                                     
  idempotency_key     text,
  status              varchar(255) NOT NULL DEFAULT 'queued',
  last_error          jsonb
);
CREATE UNIQUE INDEX mailglass_deliveries_provider_msg_id_idx
  ON mailglass_deliveries (provider, provider_message_id) WHERE provider_message_id IS NOT NULL;
CREATE INDEX mailglass_deliveries_tenant_recent_idx ON mailglass_deliveries (tenant_id, last_event_at DESC);
CREATE INDEX mailglass_deliveries_tenant_recipient_idx ON mailglass_deliveries (tenant_id, recipient);
CREATE INDEX mailglass_deliveries_tenant_stream_terminal_idx
  ON mailglass_deliveries (tenant_id, stream, terminal, last_event_at DESC);
CREATE UNIQUE INDEX mailglass_deliveries_idempotency_key_unique_idx
  ON mailglass_deliveries (idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE mailglass_events (
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
  ON mailglass_events (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX mailglass_events_delivery_idx
  ON mailglass_events (delivery_id, occurred_at) WHERE delivery_id IS NOT NULL;
CREATE INDEX mailglass_events_tenant_recent_idx ON mailglass_events (tenant_id, inserted_at DESC);
CREATE INDEX mailglass_events_needs_reconcile_idx
  ON mailglass_events (tenant_id, inserted_at) WHERE needs_reconciliation = true;
CREATE INDEX mailglass_events_deferred_window_idx
  ON mailglass_events (tenant_id, delivery_id, occurred_at DESC)
  WHERE type = 'deferred' AND delivery_id IS NOT NULL;

CREATE OR REPLACE FUNCTION mailglass_raise_immutability() RETURNS trigger
  LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
  RAISE SQLSTATE '45A01' USING MESSAGE = 'mailglass_events is append-only; UPDATE and DELETE are forbidden';
END;
$$;
CREATE TRIGGER mailglass_events_immutable_trigger
  BEFORE UPDATE OR DELETE ON mailglass_events
  FOR EACH ROW EXECUTE FUNCTION mailglass_raise_immutability();

CREATE TABLE mailglass_webhook_events (
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
  updated_at            timestamp NOT NULL,
  raw_signed_body       bytea
);
CREATE UNIQUE INDEX mailglass_webhook_events_provider_event_id_idx
  ON mailglass_webhook_events (provider, provider_event_id);
CREATE INDEX mailglass_webhook_events_tenant_status_idx
  ON mailglass_webhook_events (tenant_id, status) WHERE status IN ('failed', 'dead');
CREATE INDEX mailglass_webhook_events_provider_status_age_id_idx
  ON mailglass_webhook_events (provider, status, inserted_at, id);
CREATE INDEX mailglass_webhook_events_status_age_id_idx
  ON mailglass_webhook_events (status, inserted_at, id);
CREATE OR REPLACE FUNCTION mailglass_webhook_signed_body_immutable() RETURNS trigger
  LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
  IF OLD.raw_signed_body IS DISTINCT FROM NEW.raw_signed_body THEN
    RAISE SQLSTATE '45A01' USING MESSAGE = 'mailglass_webhook_events.raw_signed_body is immutable';
  END IF;
  RETURN NEW;
END;
$$;
CREATE TRIGGER mailglass_webhook_signed_body_immutable_trigger
  BEFORE UPDATE ON mailglass_webhook_events
  FOR EACH ROW EXECUTE FUNCTION mailglass_webhook_signed_body_immutable();

CREATE TABLE mailglass_suppressions (
  id          uuid PRIMARY KEY,
  tenant_id   text NOT NULL,
  address     public.citext NOT NULL,
  scope       text NOT NULL,
  stream      text,
  reason      text NOT NULL,
  source      text NOT NULL,
  expires_at  timestamp,
  metadata    jsonb NOT NULL DEFAULT '{}',
  inserted_at timestamp NOT NULL DEFAULT now(),
  CONSTRAINT mailglass_suppressions_stream_scope_check CHECK (
    (scope = 'address_stream' AND stream IS NOT NULL) OR (scope IN ('address', 'domain') AND stream IS NULL)),
  CONSTRAINT mailglass_suppressions_complaint_permanent_check
    CHECK (reason != 'complaint' OR expires_at IS NULL)
);
CREATE UNIQUE INDEX mailglass_suppressions_tenant_address_scope_idx
  ON mailglass_suppressions (tenant_id, address, scope, COALESCE(stream, ''));
CREATE INDEX mailglass_suppressions_tenant_address_idx ON mailglass_suppressions (tenant_id, address);
CREATE INDEX mailglass_suppressions_expires_idx
  ON mailglass_suppressions (expires_at) WHERE expires_at IS NOT NULL;

COMMENT ON TABLE mailglass_events IS '6';

