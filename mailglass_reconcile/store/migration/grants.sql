-- The privileges of each role. Run this as the owner of the tables, after each `mailglass-reconcile migrate`:
--   mailglass-reconcile migrate --grants | psql "postgresql:${MAILGLASS_DATABASE_URL#*:}"
-- Create the roles that you need first: a role that does not exist is skipped.
\set ON_ERROR_STOP on
\if :{?schema}
\else
\set schema public
\endif
SET search_path TO :"schema";

SELECT pg_catalog.to_regrole('mailglass_writer') IS NOT NULL AS writer_exists,
       pg_catalog.to_regrole('mailglass_recorder') IS NOT NULL AS recorder_exists,
       pg_catalog.to_regrole('mailglass_viewer') IS NOT NULL AS viewer_exists,
       pg_catalog.to_regrole('mailglass_sweeper') IS NOT NULL AS sweeper_exists,
       pg_catalog.to_regrole('mailglass_dispatcher') IS NOT NULL AS dispatcher_exists,
       pg_catalog.to_regrole('mailglass_eraser') IS NOT NULL AS eraser_exists,
       pg_catalog.to_regrole('mailglass_reader') IS NOT NULL AS reader_exists,
       pg_catalog.to_regprocedure('mailglass_reconcile_prune_events_v1(integer, integer, uuid)') IS NOT NULL
         AS made_by_migrate,
       pg_catalog.to_regprocedure('mailglass_reconcile_prune_events_v1(integer, integer, uuid)') IS NULL
         AS made_by_mailglass
\gset

-- Only the owner of a schema and superusers can grant USAGE on it.
DO $$
DECLARE
  schema CONSTANT text := pg_catalog.quote_ident(pg_catalog.current_schema());
  roles CONSTANT text := (
    SELECT pg_catalog.string_agg(pg_catalog.quote_ident(rolname), ', ')
      FROM pg_catalog.pg_roles
     WHERE NOT pg_catalog.has_schema_privilege(oid, pg_catalog.current_schema(), 'USAGE')
       AND rolname IN ('mailglass_writer', 'mailglass_recorder', 'mailglass_viewer', 'mailglass_sweeper',
                       'mailglass_dispatcher', 'mailglass_eraser', 'mailglass_reader'));
BEGIN
  IF roles IS NULL THEN
    RETURN;
  END IF;
  IF NOT pg_catalog.has_schema_privilege(pg_catalog.current_schema(), 'USAGE WITH GRANT OPTION') THEN
    RAISE EXCEPTION 'run first, as a superuser: GRANT USAGE ON SCHEMA % TO %', schema, roles;
  END IF;
  EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %s', schema, roles);
END;
$$;

-- mailglass_writer: Mailglass itself, or any program that inserts events.
\if :writer_exists
-- append events
GRANT INSERT ON mailglass_events TO mailglass_writer;
\endif

-- mailglass_recorder: `receive`, or a program that calls record_webhook() and record_send().
\if :recorder_exists
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
-- close orphans that it has linked
GRANT EXECUTE ON FUNCTION mailglass_reconcile_close_v1(uuid[], boolean[]) TO mailglass_recorder;
-- enqueue jobs of handlers
GRANT INSERT (event_id, handler, delivery_id, type, next_at, inserted_at)
   ON mailglass_handler_outbox TO mailglass_recorder;
-- see which handlers there are
GRANT SELECT ON mailglass_handled_types TO mailglass_recorder;
-- tell the doctor of refused webhooks
GRANT SELECT, INSERT, UPDATE ON mailglass_reconcile_refusals TO mailglass_recorder;
\endif

-- mailglass_viewer: the pages of your application that show what became of a mail.
\if :viewer_exists
-- show the state of a delivery, and find it by your own id in its metadata
GRANT SELECT (id, tenant_id, mailable, stream, recipient, provider, provider_message_id, last_event_type, last_event_at,
              terminal, dispatched_at, delivered_at, bounced_at, complained_at, suppressed_at, metadata, inserted_at)
   ON mailglass_deliveries TO mailglass_viewer;
-- show its history, and why it bounced
GRANT SELECT (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, reject_reason, metadata,
              needs_reconciliation)
   ON mailglass_events TO mailglass_viewer;
\endif

-- mailglass_sweeper: `sweep`, `follow`, `prune`, `rekey`, `link` and `doctor`, by command, Python or Celery.
\if :sweeper_exists
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
-- close orphans that it has linked
GRANT EXECUTE ON FUNCTION mailglass_reconcile_close_v1(uuid[], boolean[]) TO mailglass_sweeper;
-- keep an expired orphan from retention while it is linked
GRANT EXECUTE ON FUNCTION mailglass_reconcile_hold_expired_v1() TO mailglass_sweeper;
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
-- see refused webhooks, and prune old ones
GRANT SELECT, DELETE ON mailglass_reconcile_refusals TO mailglass_sweeper;
-- know the ages at which the owner of the tables lets it delete rows
GRANT SELECT ON mailglass_reconcile_retention TO mailglass_sweeper;
-- delete old events, if a retention is set
\if :made_by_migrate
GRANT EXECUTE ON FUNCTION mailglass_reconcile_prune_events_v1(integer, integer, uuid) TO mailglass_sweeper;
\endif
-- delete old deliveries, as above
\if :made_by_migrate
GRANT EXECUTE
   ON FUNCTION mailglass_reconcile_prune_deliveries_v1(integer, integer, text, text, timestamp, uuid)
   TO mailglass_sweeper;
\endif
-- read recipients from raw webhooks
\if :made_by_mailglass
GRANT SELECT (id, tenant_id, provider, provider_event_id, raw_payload, status, inserted_at)
   ON mailglass_webhook_events TO mailglass_sweeper;
\endif
\endif

-- mailglass_dispatcher: `dispatch`.
\if :dispatcher_exists
-- refuse a database of another version
GRANT SELECT ON mailglass_reconcile_version TO mailglass_dispatcher;
-- claim jobs, and store their results
GRANT SELECT, UPDATE (state, attempts, next_at, error, finished_at) ON mailglass_handler_outbox TO mailglass_dispatcher;
-- read the event that a handler is given
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
\if :eraser_exists
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
-- erase addresses from raw webhooks
\if :made_by_migrate
GRANT SELECT (id, tenant_id, provider_event_id, raw_payload),
      UPDATE (raw_payload, provider_event_id, updated_at)
   ON mailglass_webhook_events TO mailglass_eraser;
\endif
\endif

-- mailglass_reader: `status`, `orphans`, `find`, `explain`, `sweep --dry-run`, `prune --dry-run`, `migrate --check`
-- and `serve`.
\if :reader_exists
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
-- show refused webhooks
GRANT SELECT ON mailglass_reconcile_refusals TO mailglass_reader;
-- count the raw webhooks that a prune would delete
GRANT SELECT (status, inserted_at) ON mailglass_webhook_events TO mailglass_reader;
-- show deliveries, and which session has locked one (`xmax`)
GRANT SELECT (id, tenant_id, mailable, stream, recipient, provider, provider_message_id, inserted_at, xmax,
              last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at, complained_at,
              suppressed_at)
   ON mailglass_deliveries TO mailglass_reader;
\endif
