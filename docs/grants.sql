-- The grants of each role, for tables in the schema public: psql "$MAILGLASS_DATABASE_URL" -f grants.sql
-- Run it as the owner of the tables, after `mailglass-reconcile migrate`. Create the roles first, or leave out those that
-- you do not use. For another schema, replace "SCHEMA public", and run SET search_path TO that schema first.

-- Writer: Mailglass itself, or any program that inserts events.
GRANT USAGE ON SCHEMA public TO mailglass_writer;
GRANT INSERT ON mailglass_events TO mailglass_writer;

-- Recorder: `receive`, or a program that calls record_webhook() and record_send(). A trigger closes orphans.
GRANT USAGE ON SCHEMA public TO mailglass_recorder;
GRANT INSERT, SELECT (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata, normalized_payload)
   ON mailglass_events TO mailglass_recorder;
GRANT SELECT (id, tenant_id, recipient, provider, provider_message_id, last_event_type, last_event_at, terminal,
              dispatched_at, delivered_at, bounced_at, complained_at, suppressed_at, lock_version, updated_at),
      UPDATE (last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at, complained_at,
              suppressed_at, lock_version, updated_at),
      INSERT (id, tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id,
              last_event_type, last_event_at, dispatched_at, terminal, metadata, inserted_at, updated_at)
   ON mailglass_deliveries TO mailglass_recorder;
GRANT SELECT,
      INSERT (event_id, tenant_id, arrived_at, provider, recipient, recipient_lost, rule, ids, state),
      UPDATE (provider, recipient, recipient_lost, rule, ids, state, refused)
   ON mailglass_open_orphans TO mailglass_recorder;
GRANT SELECT, INSERT ON mailglass_open_orphan_ids TO mailglass_recorder;
GRANT INSERT (event_id, delivery_id, type, next_at, inserted_at) ON mailglass_handler_outbox TO mailglass_recorder;
GRANT SELECT ON mailglass_reconcile_version, mailglass_handled_types TO mailglass_recorder;

-- Sweeper: `sweep`, `prune`, `link` and `doctor`, by command, Python or Celery. UPDATE (id) on the raw webhooks and
-- UPDATE (error) on the outbox are for locking rows only. Without the last one a sweep works, but `status` misses it.
GRANT USAGE ON SCHEMA public TO mailglass_sweeper;
GRANT SELECT ON mailglass_reconcile_version TO mailglass_sweeper;
GRANT SELECT, INSERT ON mailglass_events TO mailglass_sweeper;
GRANT SELECT (id, tenant_id, mailable, stream, recipient, provider, provider_message_id, last_event_type, last_event_at,
              terminal, dispatched_at, delivered_at, bounced_at, complained_at, suppressed_at, lock_version,
              updated_at, inserted_at),
      UPDATE (last_event_type, last_event_at, terminal, dispatched_at, delivered_at, bounced_at, complained_at,
              suppressed_at, lock_version, updated_at)
   ON mailglass_deliveries TO mailglass_sweeper;
GRANT SELECT, INSERT (event_id, tenant_id, arrived_at),
      UPDATE (provider, recipient, recipient_lost, rule, ids, state, refused), DELETE
   ON mailglass_open_orphans TO mailglass_sweeper;
GRANT SELECT, INSERT, DELETE ON mailglass_open_orphan_ids TO mailglass_sweeper;
GRANT SELECT (id, status, inserted_at), DELETE, UPDATE (id) ON mailglass_webhook_events TO mailglass_sweeper;
GRANT SELECT, INSERT (event_id, delivery_id, type, next_at, inserted_at), UPDATE (error), DELETE
   ON mailglass_handler_outbox TO mailglass_sweeper;
GRANT SELECT ON mailglass_handled_types TO mailglass_sweeper;
GRANT SELECT, INSERT, UPDATE, DELETE ON mailglass_reconcile_runs TO mailglass_sweeper;

-- Sweeper, on tables that `migrate` made: the prune deletes old events and deliveries through these functions, if you
-- set a retention.
GRANT EXECUTE ON FUNCTION mailglass_prune_events(integer, integer, text, timestamp, bigint),
                          mailglass_prune_deliveries(integer, integer, text, timestamp, bigint) TO mailglass_sweeper;

-- Dispatcher: `dispatch`. Grant it what your handlers need as well. Without the last one handlers run, but dispatches are
-- missing from the history. `dispatch --replay` and `--forget` need more: run them as the owner of the tables.
GRANT USAGE ON SCHEMA public TO mailglass_dispatcher;
GRANT SELECT, UPDATE (state, attempts, next_at, done, error, finished_at)
   ON mailglass_handler_outbox TO mailglass_dispatcher;
GRANT SELECT (id, tenant_id, occurred_at, reject_reason, metadata, normalized_payload)
   ON mailglass_events TO mailglass_dispatcher;
GRANT SELECT (id, recipient, provider, provider_message_id) ON mailglass_deliveries TO mailglass_dispatcher;
GRANT SELECT, INSERT, UPDATE ON mailglass_handled_types TO mailglass_dispatcher;
GRANT SELECT, INSERT, UPDATE ON mailglass_reconcile_runs TO mailglass_dispatcher;

-- Eraser: `erase`, and nothing else; no other role may change a recipient. On tables that Mailglass made, it needs the
-- first two grants and the one on the open orphans only.
GRANT USAGE ON SCHEMA public TO mailglass_eraser;
GRANT SELECT ON mailglass_reconcile_version TO mailglass_eraser;
GRANT SELECT (id, tenant_id, recipient, lock_version),
      UPDATE (recipient, recipient_domain, metadata, last_error, lock_version, updated_at)
   ON mailglass_deliveries TO mailglass_eraser;
GRANT SELECT (event_id, tenant_id, recipient), UPDATE (recipient, recipient_lost)
   ON mailglass_open_orphans TO mailglass_eraser;
GRANT SELECT (id, tenant_id, provider_event_id, raw_payload), UPDATE (raw_payload, provider_event_id, updated_at)
   ON mailglass_webhook_events TO mailglass_eraser;

-- Reader: `status`, `orphans`, `find`, `explain`, `sweep --dry-run`, `migrate --check`, and `serve`. It writes nothing.
GRANT USAGE ON SCHEMA public TO mailglass_reader;
GRANT SELECT ON mailglass_reconcile_version, mailglass_events, mailglass_open_orphans, mailglass_open_orphan_ids,
   mailglass_handler_outbox, mailglass_handled_types, mailglass_reconcile_runs TO mailglass_reader;
GRANT SELECT (id, tenant_id, mailable, stream, recipient, provider, provider_message_id, last_event_type, last_event_at,
              terminal, dispatched_at, delivered_at, bounced_at, complained_at, suppressed_at, inserted_at)
   ON mailglass_deliveries TO mailglass_reader;

-- Sweeper, on tables that Mailglass made: it reads recipients in raw webhooks. Without this it links by the message id alone.
-- GRANT SELECT (id, tenant_id, provider, provider_event_id, raw_payload, status, inserted_at)
--    ON mailglass_webhook_events TO mailglass_sweeper;
