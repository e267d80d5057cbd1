-- What readers for people share: parts of their statements.

-- step: function mailglass_reconcile_orphan_of_v1
-- The orphan that an event has linked, by the event's key; NULL if it is not a link. It and the next three are parts of
-- our readers' statements: without settings, so that the planner puts them in the place of the call. So they name
-- Postgres's functions, operators and types with pg_catalog, whatever the search_path of their caller.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_orphan_of_v1(type text, key text)
RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
SELECT CASE WHEN type OPERATOR(pg_catalog.=) 'reconciled'
                 AND key COLLATE pg_catalog."C" OPERATOR(pg_catalog.~)
                     '^reconciled:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
            THEN CAST(pg_catalog.substr(key, 12) AS pg_catalog.uuid) END
$$;

-- step: function mailglass_reconcile_link_of_v1
-- The `reconciled` event of an orphan, and the delivery that it names, if any. No row if the orphan has none: an event of
-- another type or tenant that holds the key links nothing. IS TRUE, because the index of the key must serve.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_link_of_v1(orphan_id uuid, orphan_tenant text)
RETURNS TABLE (id uuid, delivery_id uuid) LANGUAGE sql STABLE AS $$
SELECT r.id, r.delivery_id FROM {schema}.mailglass_events AS r
 WHERE r.idempotency_key OPERATOR(pg_catalog.=) ('reconciled:' OPERATOR(pg_catalog.||) orphan_id)
   AND r.type OPERATOR(pg_catalog.=) 'reconciled' AND (r.tenant_id OPERATOR(pg_catalog.=) orphan_tenant) IS TRUE
$$;

-- step: function mailglass_reconcile_provider_of_v1
-- A delivery's provider: that of its send, where its row has none. A row, not a value: a value with a query in it would
-- be called for each delivery.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_provider_of_v1(delivery_id uuid, stored_provider text)
RETURNS TABLE (provider text) LANGUAGE sql STABLE AS $$
SELECT coalesce(stored_provider, (SELECT CASE WHEN pg_catalog.jsonb_typeof(e.metadata OPERATOR(pg_catalog.->) 'provider')
                                       OPERATOR(pg_catalog.=) 'string'
                                  THEN e.metadata OPERATOR(pg_catalog.->>) 'provider' END
                        FROM {schema}.mailglass_events AS e
                       WHERE e.delivery_id OPERATOR(pg_catalog.=) mailglass_reconcile_provider_of_v1.delivery_id
                         AND e.type OPERATOR(pg_catalog.=) ANY (ARRAY['dispatched', 'failed', 'rejected'])
                       ORDER BY e.delivery_id, e.occurred_at LIMIT 1))
$$;

-- step: function mailglass_reconcile_iso_v1
-- A time of UTC without zone, in ISO 8601 with Z, as every reader prints it; infinite times are no ISO 8601.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_iso_v1(at timestamp)
RETURNS text LANGUAGE sql STABLE AS $$
SELECT CASE WHEN pg_catalog.isfinite(at)
            THEN (pg_catalog.to_json(at) OPERATOR(pg_catalog.#>>) '{}') OPERATOR(pg_catalog.||) 'Z'
            ELSE CAST(at AS pg_catalog.text) END
$$;
