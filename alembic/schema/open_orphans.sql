-- The open orphans, and the triggers on the ledger that keep them, whoever writes.

-- step: index mailglass_open_orphans_pkey
CREATE UNIQUE INDEX mailglass_open_orphans_pkey ON {schema}.mailglass_open_orphans (event_id);

-- step: index mailglass_open_orphans_arrival_idx
CREATE INDEX mailglass_open_orphans_arrival_idx ON {schema}.mailglass_open_orphans (arrived_at, event_id);

-- step: index mailglass_open_orphan_ids_pkey
CREATE UNIQUE INDEX mailglass_open_orphan_ids_pkey ON {schema}.mailglass_open_orphan_ids (event_id, position);

-- step: index mailglass_open_orphan_ids_candidate_idx
CREATE INDEX mailglass_open_orphan_ids_candidate_idx ON {schema}.mailglass_open_orphan_ids (candidate_id);

-- step: function mailglass_open_orphans_add
-- The functions run with their owner's rights, so a writer needs rights on the ledger only. Nobody else may put them on
-- a table. They read nothing of the ledger: that would cost writers in SERIALIZABLE a failure (SQLSTATE 40001).
CREATE OR REPLACE FUNCTION {schema}.mailglass_open_orphans_add() RETURNS trigger
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

REVOKE ALL ON FUNCTION {schema}.mailglass_open_orphans_add() FROM PUBLIC;

-- step: function mailglass_open_orphans_remove
-- A scan of the whole table would read what other writers in SERIALIZABLE remove, and fail them.
CREATE OR REPLACE FUNCTION {schema}.mailglass_open_orphans_remove() RETURNS trigger
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

REVOKE ALL ON FUNCTION {schema}.mailglass_open_orphans_remove() FROM PUBLIC;

-- step: trigger mailglass_open_orphans_add
-- Tenants are unbounded; very long names would exhaust a sweep's memory, so their orphans are never linked.
CREATE OR REPLACE TRIGGER mailglass_open_orphans_add AFTER INSERT ON {schema}.mailglass_events FOR EACH ROW
  WHEN (NEW.needs_reconciliation AND NEW.delivery_id IS NULL AND length(NEW.tenant_id) <= 1000)
  EXECUTE FUNCTION {schema}.mailglass_open_orphans_add();

-- step: trigger mailglass_open_orphans_remove
-- A sweep closes what it has claimed itself, all at once, and says so for its transaction.
CREATE OR REPLACE TRIGGER mailglass_open_orphans_remove AFTER INSERT ON {schema}.mailglass_events FOR EACH ROW
  WHEN (NEW.type = 'reconciled'
        AND current_setting('mailglass_reconcile.closes_orphans', true) IS DISTINCT FROM 'on'
        AND NEW.idempotency_key COLLATE "C"
            ~ '^reconciled:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')
  EXECUTE FUNCTION {schema}.mailglass_open_orphans_remove();
