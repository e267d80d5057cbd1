-- How deliveries are found by message id, tenant and recipient.

-- step: index mailglass_deliveries_reconcile_idx
-- Over hashes: no value is too long for it. Nothing in it depends on a locale, as lower() does, or on a search_path, or
-- can fail. The letters that are lowered are those of ASCII, the characters that are left out are what Python calls white
-- space, and what is taken of a recipient is equal wherever addresses compare as equal.
CREATE INDEX mailglass_deliveries_reconcile_idx ON {schema}.mailglass_deliveries (
  pg_catalog.hashtextextended(provider_message_id, 0), pg_catalog.hashtextextended(tenant_id, 0),
  (pg_catalog.hashtextextended(coalesce(substring(pg_catalog.regexp_replace(
  pg_catalog.translate(
    pg_catalog.left(recipient, 1000) COLLATE pg_catalog."C",
    E'ABCDEFGHIJKLMNOPQRSTUVWXYZ \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002'
    '\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
    'abcdefghijklmnopqrstuvwxyz'),
  '^.*<([^<>]*)>$', E'\\1') FROM '^[!-;=?A-~]+@(?:(?!.*xn--)[!-;=?A-~]+$)?'), ''), 0)));

-- step: function mailglass_reconcile_deliveries_of_ids_v1
-- The deliveries that carry one of the ids, at most eleven of each. An id is looked up by its hash, because no value is
-- too long for that; the id itself then decides.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_deliveries_of_ids_v1(message_ids text)
RETURNS TABLE (
  candidate_id text, delivery_id text, tenant_id text, provider text, recipient text, failure text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET row_security = off
SET array_nulls = on SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
  broken_constraint text;
  in_table text;
  in_context text;
BEGIN
  RETURN QUERY
  SELECT c.id, d.id::text, d.tenant_id::text, d.provider::text, d.recipient, NULL::text
    FROM unnest(CAST(message_ids AS text[])) AS c (id)
   CROSS JOIN LATERAL (
           SELECT id, tenant_id, provider, left(recipient, 1000) AS recipient
             FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(c.id, 0) AND provider_message_id = c.id
            LIMIT 11) AS d;
EXCEPTION WHEN OTHERS THEN
  -- As README.md says: a row that voids all others, and no message that may quote a value.
  IF left(SQLSTATE, 2) = ANY ('{08,25,40,53,57,58,XX}') THEN
    RAISE;
  END IF;
  GET STACKED DIAGNOSTICS
    broken_constraint = CONSTRAINT_NAME, in_table = TABLE_NAME, in_context = PG_EXCEPTION_CONTEXT;
  RETURN QUERY
  SELECT NULL::text, NULL::text, NULL::text, NULL::text, NULL::text, json_build_object(
           'sqlstate', SQLSTATE, 'constraint', broken_constraint, 'table', in_table, 'context', in_context,
           'message', CASE SQLSTATE WHEN '42501' THEN SQLERRM END)::text;
END;
$$;
