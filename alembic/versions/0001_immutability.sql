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
CREATE OR REPLACE TRIGGER mailglass_events_immutable_trigger
  BEFORE UPDATE OR DELETE ON {schema}.mailglass_events
  FOR EACH ROW EXECUTE FUNCTION {schema}.mailglass_raise_immutability();
