-- On Mailglass's tables that `migrate` made: the indexes that our statements use, and what keeps the ledger append-only.

-- step: index mailglass_deliveries_pkey [made here]
CREATE UNIQUE INDEX mailglass_deliveries_pkey ON {schema}.mailglass_deliveries (id);

-- step: index mailglass_deliveries_provider_msg_id_idx [made here]
CREATE UNIQUE INDEX mailglass_deliveries_provider_msg_id_idx
  ON {schema}.mailglass_deliveries (provider, provider_message_id) WHERE provider_message_id IS NOT NULL;

-- step: index mailglass_deliveries_idempotency_key_unique_idx [made here]
CREATE UNIQUE INDEX mailglass_deliveries_idempotency_key_unique_idx
  ON {schema}.mailglass_deliveries (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- step: index mailglass_deliveries_tenant_inserted_idx [made here]
-- In the place of Mailglass's three over the tenant: nothing here changes when an event is projected, so the update stays
-- in its page (HOT). With the id, a walk goes on among rows of one time; an expression, because NULL has no order.
CREATE INDEX mailglass_deliveries_tenant_inserted_idx
  ON {schema}.mailglass_deliveries (tenant_id, (COALESCE(provider, '')), inserted_at, id);

-- step: index mailglass_events_pkey [made here]
CREATE UNIQUE INDEX mailglass_events_pkey ON {schema}.mailglass_events (id);

-- step: index mailglass_events_idempotency_key_idx [made here]
CREATE UNIQUE INDEX mailglass_events_idempotency_key_idx
  ON {schema}.mailglass_events (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- step: index mailglass_events_delivery_idx [made here]
CREATE INDEX mailglass_events_delivery_idx
  ON {schema}.mailglass_events (delivery_id, occurred_at) WHERE delivery_id IS NOT NULL;

-- step: index mailglass_events_needs_reconcile_idx [made here]
CREATE INDEX mailglass_events_needs_reconcile_idx
  ON {schema}.mailglass_events (tenant_id, inserted_at) WHERE needs_reconciliation = true;

-- step: index mailglass_webhook_events_pkey [made here]
CREATE UNIQUE INDEX mailglass_webhook_events_pkey ON {schema}.mailglass_webhook_events (id);

-- step: index mailglass_webhook_events_provider_event_id_idx [made here]
CREATE UNIQUE INDEX mailglass_webhook_events_provider_event_id_idx
  ON {schema}.mailglass_webhook_events (provider, provider_event_id);

-- step: function mailglass_raise_immutability [made here]
-- The functions of retention run as the owner, with a setting that ends with them. By this function `migrate` also
-- knows that it made the tables.
CREATE OR REPLACE FUNCTION {schema}.mailglass_raise_immutability() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('mailglass_reconcile.retention', true) = 'on' THEN
    IF current_user = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) THEN
      RETURN OLD;
    END IF;
  END IF;
  RAISE SQLSTATE '45A01'
    USING MESSAGE = 'mailglass_events is append-only; UPDATE and DELETE are forbidden';
END;
$$;

-- step: trigger mailglass_events_immutable_trigger [made here]
CREATE OR REPLACE TRIGGER mailglass_events_immutable_trigger
  BEFORE DELETE OR UPDATE ON {schema}.mailglass_events
  FOR EACH ROW EXECUTE FUNCTION {schema}.mailglass_raise_immutability();

-- step: function mailglass_events_no_truncate [made here]
CREATE OR REPLACE FUNCTION {schema}.mailglass_events_no_truncate() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE SQLSTATE '45A01' USING MESSAGE = 'mailglass_events is append-only; TRUNCATE is forbidden';
END;
$$;

-- step: trigger mailglass_events_no_truncate [made here]
CREATE OR REPLACE TRIGGER mailglass_events_no_truncate BEFORE TRUNCATE ON {schema}.mailglass_events
  FOR EACH STATEMENT EXECUTE FUNCTION {schema}.mailglass_events_no_truncate();
