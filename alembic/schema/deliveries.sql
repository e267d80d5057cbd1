-- How deliveries are found by message id, tenant and recipient.

-- step: index mailglass_deliveries_reconcile_idx
-- Over hashes: no value is too long for it, and nothing in it can fail.
CREATE INDEX mailglass_deliveries_reconcile_idx ON {schema}.mailglass_deliveries (
  pg_catalog.hashtextextended(provider_message_id, 0), pg_catalog.hashtextextended(tenant_id, 0),
  ({recipient_key}));

-- step: index mailglass_deliveries_recipient_idx
-- For searches and erasures by address: in any spelling, in all tenants.
CREATE INDEX mailglass_deliveries_recipient_idx ON {schema}.mailglass_deliveries (({recipient_key}));

-- step: function mailglass_reconcile_find_deliveries_v1
-- The deliveries that decide for each question: a message id, the event's tenant, and the key of its recipient or NULL.
-- Of an id that names at most ten deliveries, these are all of them, once for all of its questions. Of a wider one, they
-- are those that have a provider, once for all questions; and of those without, for each question, those of the
-- recipient's key, two of the tenant, and two of other tenants. Python compares providers, however they are spelled.
-- An id is looked up by its hash, because no value is too long for that; the id itself then decides.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_find_deliveries_v1(
  message_ids text, tenants text, recipient_keys text)
RETURNS TABLE (question bigint, candidate_id text, delivery_id text, tenant_id text, provider text, recipient text,
               failure text)
LANGUAGE plpgsql
{our_settings} AS $$
#variable_conflict use_column
DECLARE
  siblings bigint;
  wide text[] := '{}';
  error_context text;
BEGIN
  -- Each id is looked up once. An eleventh delivery shows that it is wide: then it has one row here.
  FOR candidate_id, delivery_id, tenant_id, provider, recipient, siblings IN
  SELECT q.id, d.id::text, d.tenant_id::text, d.provider::text, left(d.recipient, 1000), d.siblings
    FROM (SELECT DISTINCT m.id FROM unnest(CAST(message_ids AS text[])) AS m (id)) AS q
   CROSS JOIN LATERAL (
           SELECT f.*, count(*) OVER () AS siblings, row_number() OVER () AS place
             FROM (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
                    WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
                      AND provider_message_id = q.id
                    LIMIT 11) AS f) AS d
   WHERE d.siblings <= 10 OR d.place = 1
  LOOP
    IF siblings <= 10 THEN
      RETURN NEXT;
    ELSE
      wide := wide || candidate_id;
    END IF;
  END LOOP;
  IF cardinality(wide) = 0 THEN
    RETURN;
  END IF;
  -- Of one provider, one id names at most one delivery (a unique index guarantees it). The names of the providers are
  -- found by one probe each.
  RETURN QUERY
  WITH RECURSIVE names (provider) AS (
    (SELECT provider FROM {schema}.mailglass_deliveries
      WHERE provider_message_id IS NOT NULL AND provider IS NOT NULL
      ORDER BY provider LIMIT 1)
     UNION ALL
    SELECT (SELECT d.provider FROM {schema}.mailglass_deliveries AS d
             WHERE d.provider_message_id IS NOT NULL AND d.provider > n.provider ORDER BY d.provider LIMIT 1)
      FROM names AS n WHERE n.provider IS NOT NULL
  )
  SELECT NULL::bigint, w.id, d.id::text, d.tenant_id::text, d.provider::text, left(d.recipient, 1000), NULL::text
    FROM names AS n
   CROSS JOIN unnest(wide) AS w (id)
   CROSS JOIN LATERAL (
           SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
            WHERE provider = n.provider AND provider_message_id = w.id LIMIT 1) AS d;
  -- So looking for a delivery without a provider passes few others; num_nulls, because the other index serves IS NULL,
  -- and would read every delivery of the id. Of a key that several addresses share, Python compares the recipients.
  RETURN QUERY
  SELECT q.number, q.id, d.id::text, d.tenant_id::text, d.provider::text, left(d.recipient, 1000), NULL::text
    FROM (SELECT * FROM unnest(CAST(message_ids AS text[]), CAST(tenants AS text[]), CAST(recipient_keys AS text[]))
                   WITH ORDINALITY AS a (id, tenant_id, recipient_key, number)
           WHERE (a.id IN (SELECT unnest(wide))) IS TRUE) AS q
   CROSS JOIN LATERAL (
          (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
              AND hashtextextended(tenant_id, 0) = hashtextextended(q.tenant_id, 0)
              AND {recipient_key} = hashtextextended(q.recipient_key, 0)
              AND provider_message_id = q.id AND tenant_id = q.tenant_id AND num_nulls(provider) = 1
            LIMIT CASE WHEN right(q.recipient_key, 1) = ANY (ARRAY['', '@']) THEN 1001 ELSE 11 END)
           UNION ALL
          (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
              AND hashtextextended(tenant_id, 0) = hashtextextended(q.tenant_id, 0)
              AND provider_message_id = q.id AND tenant_id = q.tenant_id AND num_nulls(provider) = 1 LIMIT 2)
           UNION ALL
          (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
              AND hashtextextended(tenant_id, 0) < hashtextextended(q.tenant_id, 0)
              AND provider_message_id = q.id AND num_nulls(provider) = 1 LIMIT 1)
           UNION ALL
          (SELECT id, tenant_id, provider, recipient FROM {schema}.mailglass_deliveries
            WHERE hashtextextended(provider_message_id, 0) = hashtextextended(q.id, 0)
              AND hashtextextended(tenant_id, 0) > hashtextextended(q.tenant_id, 0)
              AND provider_message_id = q.id AND num_nulls(provider) = 1 LIMIT 1)) AS d;
{catch_failure}
  RETURN QUERY SELECT NULL::bigint, NULL::text, NULL::text, NULL::text, NULL::text, NULL::text, failure;
END;
$$;
