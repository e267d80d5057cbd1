-- The privileges of each role. Run this as the owner of the tables, after `mailglass-reconcile migrate`:
--   psql "$MAILGLASS_DATABASE_URL" -f grants.sql
-- Create the roles that you need first: psql skips a role that does not exist.
-- `mailglass-reconcile migrate --grants` prints this file for the schema of MAILGLASS_DATABASE_SCHEMA.
\set ON_ERROR_STOP on
SET search_path TO public;
SELECT to_regproc('mailglass_prune_events') IS NOT NULL AS made_by_migrate,
       to_regproc('mailglass_prune_events') IS NULL AS made_by_mailglass \gset

-- mailglass_writer: Mailglass itself, or any program that inserts events.
SELECT to_regrole('mailglass_writer') IS NOT NULL AS role_exists \gset
\if :role_exists
SELECT NOT has_schema_privilege('mailglass_writer', current_schema(), 'USAGE') AS lacks_usage \gset
\if :lacks_usage
GRANT USAGE ON SCHEMA public TO mailglass_writer;
\endif
-- append events
GRANT INSERT ON mailglass_events TO mailglass_writer;
\endif

-- mailglass_recorder: `receive`, or a program that calls record_webhook() and record_send().
SELECT to_regrole('mailglass_recorder') IS NOT NULL AS role_exists \gset
\if :role_exists
SELECT NOT has_schema_privilege('mailglass_recorder', current_schema(), 'USAGE') AS lacks_usage \gset
\if :lacks_usage
GRANT USAGE ON SCHEMA public TO mailglass_recorder;
\endif
-- refuse a database of another version
GRANT SELECT ON mailglass_reconcile_version TO mailglass_recorder;
-- append events, and find those that were recorded before
GRANT INSERT,
      SELECT (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, normalized_payload)
   ON mailglass_events TO mailglass_recorder;
-- store deliveries, find those of an event, and project the event onto them
GRANT SELECT (id, tenant_id, recipient, provider, provider_message_id, last_event_type, last_event_at, terminal,
              dispatched_at, delivered_at, bounced_at, complained_at, suppressed_at, lock_version, updated_at),
      UPDATE (last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at, complained_at,
              suppressed_at, lock_version, updated_at),
      INSERT (id, tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id,
              last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
   ON mailglass_deliveries TO mailglass_recorder;
-- store orphans with their keys; the ledger's trigger closes them
GRANT SELECT,
      INSERT (event_id, tenant_id, arrived_at, provider, recipient, recipient_lost, rank, ids, state),
      UPDATE (provider, recipient, recipient_lost, rank, ids, state, refused)
   ON mailglass_open_orphans TO mailglass_recorder;
-- store their candidate ids
GRANT SELECT, INSERT ON mailglass_open_orphan_ids TO mailglass_recorder;
-- close orphans that have their `reconciled` event
GRANT EXECUTE ON FUNCTION mailglass_reconcile_close_v1(uuid[]) TO mailglass_recorder;
-- enqueue jobs of handlers
GRANT INSERT (event_id, handler, delivery_id, type, next_at, inserted_at)
   ON mailglass_handler_outbox TO mailglass_recorder;
-- see which handlers there are
GRANT SELECT ON mailglass_handled_types TO mailglass_recorder;
-- know the certificates of Amazon SES and Scaleway after a restart
GRANT SELECT, INSERT, DELETE ON mailglass_webhook_certificates TO mailglass_recorder;
\endif

-- mailglass_sweeper: `sweep`, `follow`, `prune`, `rekey`, `link` and `doctor`, by command, Python or Celery.
SELECT to_regrole('mailglass_sweeper') IS NOT NULL AS role_exists \gset
\if :role_exists
SELECT NOT has_schema_privilege('mailglass_sweeper', current_schema(), 'USAGE') AS lacks_usage \gset
\if :lacks_usage
GRANT USAGE ON SCHEMA public TO mailglass_sweeper;
\endif
-- refuse a database of another version
GRANT SELECT ON mailglass_reconcile_version TO mailglass_sweeper;
-- read orphans, and append `reconciled` events
GRANT SELECT, INSERT ON mailglass_events TO mailglass_sweeper;
-- match deliveries, and project events onto them
GRANT SELECT (id, tenant_id, mailable, stream, recipient, provider, provider_message_id, lock_version, updated_at,
              inserted_at, xmax, last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at,
              complained_at, suppressed_at),
      UPDATE (last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at, complained_at,
              suppressed_at, lock_version, updated_at)
   ON mailglass_deliveries TO mailglass_sweeper;
-- claim, close and repair open orphans, and store their keys
GRANT SELECT,
      INSERT (event_id, tenant_id, arrived_at),
      UPDATE (provider, recipient, recipient_lost, rank, ids, state, refused),
      DELETE
   ON mailglass_open_orphans TO mailglass_sweeper;
-- replace their candidate ids
GRANT SELECT, INSERT, DELETE ON mailglass_open_orphan_ids TO mailglass_sweeper;
-- close orphans that have their `reconciled` event
GRANT EXECUTE ON FUNCTION mailglass_reconcile_close_v1(uuid[]) TO mailglass_sweeper;
-- prune raw webhooks; UPDATE (id) only locks rows
GRANT SELECT (id, status, inserted_at), UPDATE (id), DELETE ON mailglass_webhook_events TO mailglass_sweeper;
-- enqueue jobs of handlers, and prune those that are done or dead; UPDATE (error) only locks rows
GRANT SELECT,
      INSERT (event_id, handler, delivery_id, type, next_at, inserted_at),
      UPDATE (error),
      DELETE
   ON mailglass_handler_outbox TO mailglass_sweeper;
-- see which handlers there are
GRANT SELECT ON mailglass_handled_types TO mailglass_sweeper;
-- record runs, which `status` reads
GRANT SELECT, INSERT, UPDATE, DELETE ON mailglass_reconcile_runs TO mailglass_sweeper;
-- know the ages at which the owner of the tables lets it delete rows
GRANT SELECT ON mailglass_reconcile_retention TO mailglass_sweeper;
\if :made_by_migrate
-- delete old events, if a retention is set, on tables that `migrate` made
GRANT EXECUTE ON FUNCTION mailglass_prune_events(integer, integer, uuid) TO mailglass_sweeper;
-- delete old deliveries, as above
GRANT EXECUTE
   ON FUNCTION mailglass_prune_deliveries(integer, integer, text, text, timestamp, uuid) TO mailglass_sweeper;
\endif
\if :made_by_mailglass
-- read recipients from raw webhooks, on tables that Mailglass made
GRANT SELECT (id, tenant_id, provider, provider_event_id, raw_payload, status, inserted_at)
   ON mailglass_webhook_events TO mailglass_sweeper;
\endif
\endif

-- mailglass_dispatcher: `dispatch`.
SELECT to_regrole('mailglass_dispatcher') IS NOT NULL AS role_exists \gset
\if :role_exists
SELECT NOT has_schema_privilege('mailglass_dispatcher', current_schema(), 'USAGE') AS lacks_usage \gset
\if :lacks_usage
GRANT USAGE ON SCHEMA public TO mailglass_dispatcher;
\endif
-- refuse a database of another version
GRANT SELECT ON mailglass_reconcile_version TO mailglass_dispatcher;
-- claim jobs, and store their results
GRANT SELECT, UPDATE (state, attempts, next_at, error, finished_at) ON mailglass_handler_outbox TO mailglass_dispatcher;
-- read the event that a handler is given, and count what a new one missed
GRANT SELECT (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, metadata,
              normalized_payload)
   ON mailglass_events TO mailglass_dispatcher;
-- read its delivery
GRANT SELECT (id, tenant_id, recipient, provider, provider_message_id) ON mailglass_deliveries TO mailglass_dispatcher;
-- register handlers
GRANT SELECT,
      INSERT (type, handler, seen_at, seen_by),
      UPDATE (seen_at, seen_by)
   ON mailglass_handled_types TO mailglass_dispatcher;
-- record runs
GRANT SELECT, INSERT, UPDATE ON mailglass_reconcile_runs TO mailglass_dispatcher;
\endif

-- mailglass_eraser: `erase`.
SELECT to_regrole('mailglass_eraser') IS NOT NULL AS role_exists \gset
\if :role_exists
SELECT NOT has_schema_privilege('mailglass_eraser', current_schema(), 'USAGE') AS lacks_usage \gset
\if :lacks_usage
GRANT USAGE ON SCHEMA public TO mailglass_eraser;
\endif
-- refuse a database of another version
GRANT SELECT ON mailglass_reconcile_version TO mailglass_eraser;
-- erase addresses from deliveries
GRANT SELECT (id, tenant_id, recipient, lock_version),
      UPDATE (recipient, recipient_domain, metadata, last_error, lock_version, updated_at)
   ON mailglass_deliveries TO mailglass_eraser;
-- erase addresses from open orphans
GRANT SELECT (event_id, tenant_id, recipient),
      UPDATE (recipient, recipient_lost)
   ON mailglass_open_orphans TO mailglass_eraser;
\if :made_by_migrate
-- erase addresses from raw webhooks, on tables that `migrate` made
GRANT SELECT (id, tenant_id, provider_event_id, raw_payload),
      UPDATE (raw_payload, provider_event_id, updated_at)
   ON mailglass_webhook_events TO mailglass_eraser;
\endif
\endif

-- mailglass_reader: `status`, `orphans`, `find`, `explain`, `sweep --dry-run`, `prune --dry-run`, `migrate --check` and
-- `serve`.
SELECT to_regrole('mailglass_reader') IS NOT NULL AS role_exists \gset
\if :role_exists
SELECT NOT has_schema_privilege('mailglass_reader', current_schema(), 'USAGE') AS lacks_usage \gset
\if :lacks_usage
GRANT USAGE ON SCHEMA public TO mailglass_reader;
\endif
-- refuse a database of another version
GRANT SELECT ON mailglass_reconcile_version TO mailglass_reader;
-- show events
GRANT SELECT ON mailglass_events TO mailglass_reader;
-- show open orphans
GRANT SELECT ON mailglass_open_orphans TO mailglass_reader;
-- search open orphans by message id
GRANT SELECT ON mailglass_open_orphan_ids TO mailglass_reader;
-- show jobs
GRANT SELECT ON mailglass_handler_outbox TO mailglass_reader;
-- see which handlers there are
GRANT SELECT ON mailglass_handled_types TO mailglass_reader;
-- show runs
GRANT SELECT ON mailglass_reconcile_runs TO mailglass_reader;
-- count the raw webhooks that a prune would delete
GRANT SELECT (status, inserted_at) ON mailglass_webhook_events TO mailglass_reader;
-- show deliveries, and which session has locked one (`xmax`)
GRANT SELECT (id, tenant_id, mailable, stream, recipient, provider, provider_message_id, inserted_at, xmax,
              last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at, complained_at,
              suppressed_at)
   ON mailglass_deliveries TO mailglass_reader;
\endif

-- Only the owner of a schema and superusers can grant USAGE on it.
DO $$
DECLARE
  roles CONSTANT text := (
    SELECT string_agg(quote_ident(rolname), ', ')
      FROM pg_roles
     WHERE NOT has_schema_privilege(oid, current_schema(), 'USAGE')
       AND rolname IN ('mailglass_writer', 'mailglass_recorder', 'mailglass_sweeper', 'mailglass_dispatcher', 'mailglass_eraser',
                        'mailglass_reader'));
BEGIN
  IF roles IS NOT NULL THEN
    RAISE EXCEPTION 'run first, as a superuser: GRANT USAGE ON SCHEMA % TO %', quote_ident(current_schema()), roles;
  END IF;
END;
$$;
