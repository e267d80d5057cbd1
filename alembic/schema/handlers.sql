-- The handlers' outbox with its jobs, and the handlers that there are.

-- step: index mailglass_handler_outbox_pkey
CREATE UNIQUE INDEX mailglass_handler_outbox_pkey ON {schema}.mailglass_handler_outbox (event_id, handler);

-- step: index mailglass_handler_outbox_due_idx
CREATE INDEX mailglass_handler_outbox_due_idx
  ON {schema}.mailglass_handler_outbox (state, handler, type, next_at) WHERE state <> 'done';

-- step: index mailglass_handler_outbox_finished_idx
CREATE INDEX mailglass_handler_outbox_finished_idx
  ON {schema}.mailglass_handler_outbox (finished_at) WHERE state = 'done';

-- step: index mailglass_handled_types_pkey
CREATE UNIQUE INDEX mailglass_handled_types_pkey ON {schema}.mailglass_handled_types (type, handler);

-- step: function mailglass_reconcile_finish_job_v1
-- Ends an attempt of a job, and returns the job's new state; NULL if the job is not waiting any more, or another session
-- has claimed it since. Without an error it is done: the dispatcher says so in the transaction in which the handler then
-- runs. After the run it says the same with an error: if the row is still waiting, that transaction was not committed.
-- It waits for the row, so also for a COMMIT whose answer was lost.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_finish_job_v1(
  event uuid, handler_name text, attempt integer, error_class text, delays float8[])
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  last CONSTANT boolean := attempt > cardinality(delays);
  new_state text;
BEGIN
  -- CASE, which the planner cannot estimate: with statistics from a time when nothing waited, `state = 'waiting'` looks
  -- like one row, and it would read all that wait.
  UPDATE {schema}.mailglass_handler_outbox AS o
     SET state = CASE WHEN error_class IS NULL THEN 'done' WHEN last THEN 'dead' ELSE 'waiting' END,
         error = error_class,
         finished_at = CASE WHEN error_class IS NULL OR last THEN clock_timestamp()::timestamp END,
         next_at = CASE WHEN error_class IS NULL OR last THEN o.next_at
                        ELSE clock_timestamp()::timestamp
                             + make_interval(secs => delays[attempt] * (1 + random() / 4)) END
   WHERE o.event_id = event AND o.handler = handler_name
     AND CASE WHEN o.state = 'waiting' THEN o.attempts = attempt END
  RETURNING o.state INTO new_state;
  RETURN new_state;
END;
$$;

-- step: function mailglass_reconcile_start_job_v1
-- Marks a job done in the transaction in which its handler then runs, and limits what a statement and that transaction
-- may take; limits that are stricter stay, and older servers have none for a whole transaction. Returns the settings
-- that it changed, as they were, or one row without a name; no row if the job is not this attempt's any more.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_start_job_v1(
  event text, handler_name text, attempt text, time_limit text)
RETURNS TABLE (name text, setting text)
LANGUAGE plpgsql
{our_settings} SET lock_timeout = '30s' AS $$
#variable_conflict use_column
DECLARE
  is_limited boolean := false;
BEGIN
  IF {schema}.mailglass_reconcile_finish_job_v1(
       CAST(event AS uuid), handler_name, CAST(attempt AS integer), CAST(NULL AS text),
       CAST('{}' AS float8[])) IS NULL THEN
    RETURN;
  END IF;
  FOREACH name IN ARRAY ARRAY['statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'] LOOP
    setting := current_setting(name, true);
    IF CAST(setting AS interval) NOT BETWEEN interval '1 microsecond' AND CAST(time_limit AS interval) THEN
      PERFORM set_config(name, time_limit, true);
      is_limited := true;
      RETURN NEXT;
    END IF;
  END LOOP;
  IF NOT is_limited THEN
    RETURN QUERY SELECT NULL::text, NULL::text;
  END IF;
END;
$$;

-- step: function mailglass_reconcile_claim_job_v1
-- Records that the last attempt has failed, if there was one and its transaction was not committed, and returns the
-- state that it leaves. Then claims one job that is due and counts its attempt, which the caller commits before the
-- handler runs; returns it with what the handler is told of event and delivery. It is of the first of the given
-- registrations, in their order, that has one. Only that row is locked, and rows that other sessions hold are skipped.
-- A job whose last attempt never ended is `dead`. The commit need not wait for the disk: after a crash of the server,
-- the attempt is not counted.
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_claim_job_v1(
  handlers text, types text, delays text, unfinished text, synchronous text,
  last_event text, last_handler text, last_attempt text, last_error text)
RETURNS TABLE (last_state text, event_id text, handler text, attempts smallint, dead boolean, type text,
               delivery_id text, tenant_id text, reject_reason text, occurred_at timestamp, provider text,
               message_id text, recipient text, bounce text, smtp_status text)
LANGUAGE plpgsql
{our_settings} SET lock_timeout = '30s' AS $$
#variable_conflict use_column
DECLARE
  -- From each attempt to the next.
  seconds CONSTANT float8[] := delays;
  most CONSTANT integer := cardinality(seconds) + 1;
  failed_state text;
BEGIN
  PERFORM set_config('synchronous_commit', synchronous, true) WHERE synchronous IS NOT NULL;
  IF last_event IS NOT NULL THEN
    failed_state := {schema}.mailglass_reconcile_finish_job_v1(
      CAST(last_event AS uuid), last_handler, CAST(last_attempt AS integer), last_error, seconds);
  END IF;
  RETURN QUERY
  -- One probe of the index for each registration, until one has a job.
  WITH due AS MATERIALIZED (
    SELECT j.event_id, j.handler
      FROM unnest(CAST(handlers AS text[]), CAST(types AS text[])) AS r (handler, type)
     CROSS JOIN LATERAL (
             SELECT o.event_id, o.handler, o.type FROM {schema}.mailglass_handler_outbox AS o
              WHERE o.state = 'waiting' AND o.handler = r.handler AND o.type = r.type AND o.next_at <= now()::timestamp
              ORDER BY o.next_at LIMIT 1 FOR UPDATE SKIP LOCKED) AS j
     LIMIT 1
  ), claimed AS (
    UPDATE {schema}.mailglass_handler_outbox AS o
       SET attempts = least(o.attempts + 1, most), error = unfinished,
           state = CASE WHEN o.attempts >= most THEN 'dead' ELSE 'waiting' END,
           finished_at = CASE WHEN o.attempts >= most THEN clock_timestamp()::timestamp END,
           -- A handler takes half a minute at most; if its process ends, nobody else says so.
           next_at = clock_timestamp()::timestamp
                     + make_interval(secs => greatest(60, coalesce(seconds[o.attempts + 1], 300)) * (1 + random() / 4))
      FROM due
     WHERE o.event_id = due.event_id AND o.handler = due.handler
    RETURNING o.*
  )
  -- A time that Python cannot hold is replaced.
  SELECT failed_state, c.event_id::text, c.handler, c.attempts, c.state = 'dead', c.type, c.delivery_id::text,
         e.tenant_id, e.reject_reason,
         CASE WHEN e.occurred_at BETWEEN '0001-01-01' AND '9999-12-31' THEN e.occurred_at ELSE c.inserted_at END,
         coalesce(CASE jsonb_typeof(e.metadata -> 'provider') WHEN 'string' THEN e.metadata ->> 'provider' END,
                  CASE jsonb_typeof(e.normalized_payload -> 'provider')
                       WHEN 'string' THEN e.normalized_payload ->> 'provider' END,
                  d.provider),
         d.provider_message_id, d.recipient,
         CASE WHEN e.metadata ->> 'bounce' IN ('hard', 'soft') THEN e.metadata ->> 'bounce' END,
         left(e.metadata ->> 'smtp_status', 100)
    FROM (SELECT) AS always
    LEFT JOIN claimed AS c ON true
    LEFT JOIN LATERAL (SELECT tenant_id, reject_reason, occurred_at, metadata, normalized_payload
                         FROM {schema}.mailglass_events WHERE id = c.event_id OFFSET 0) AS e ON true
    LEFT JOIN LATERAL (SELECT provider, provider_message_id, recipient
                         FROM {schema}.mailglass_deliveries WHERE id = c.delivery_id OFFSET 0) AS d ON true;
END;
$$;
