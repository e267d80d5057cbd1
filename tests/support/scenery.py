"""A realistic ledger: deliveries, open orphans of every state, expired ones, and a day of runs."""

import sqlalchemy as sa

import mailglass_reconcile
import sweeping

DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       provider, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT md5('d' || n)::uuid, (ARRAY['acme', 'globex', 'initech'])[n % 3 + 1], 'Mail', 'transactional',
       'canary' || n || '@example.com', 'example.com', 'sent-' || CASE WHEN n > 36 THEN 36 ELSE n END, NULL,
       'dispatched', now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 hour', now()
  FROM generate_series(1, 42) AS n
"""

# Of ten, seven have no delivery; one each has several deliveries, another tenant's, or no id.
OPEN = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM now() AT TIME ZONE 'UTC') * 1000)::bigint - n), 12, '0')
            || '7' || substr(md5('o' || n), 1, 3) || '8' || substr(md5('p' || n), 1, 15) AS uuid),
       (ARRAY['acme', 'globex', 'initech'])[n % 3 + 1],
       (ARRAY['delivered', 'opened', 'bounced', 'clicked'])[n % 4 + 1],
       now() AT TIME ZONE 'UTC' - interval '40 minutes',
       jsonb_build_object('provider', CASE WHEN n % 2 = 0 THEN 'postmark' ELSE 'sendgrid' END)
       || CASE n % 10 WHEN 0 THEN '{}'
                      WHEN 1 THEN jsonb_build_object('provider_message_id', 'sent-36')
                      WHEN 2 THEN jsonb_build_object('provider_message_id', 'sent-' || (n + 1) % 30 + 1)
                      ELSE jsonb_build_object('provider_message_id', md5('m' || n)::uuid) END,
       true, now() AT TIME ZONE 'UTC' - interval '2 hours' + n * interval '6900 seconds' / CAST(:open AS float8)
  FROM generate_series(1, CAST(:open AS integer)) AS n
"""

LINKED = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT md5('l' || n)::uuid, (ARRAY['acme', 'globex', 'initech'])[n % 3 + 1],
       CASE WHEN n % 2 = 0 THEN 'delivered' ELSE 'opened' END, now() AT TIME ZONE 'UTC' - interval '3 minutes',
       jsonb_build_object('provider', 'postmark', 'provider_message_id', 'sent-' || n,
                          'recipient', 'canary' || n || '@example.com'),
       true, now() AT TIME ZONE 'UTC' - interval '3 minutes' - n * interval '7 seconds'
  FROM generate_series(1, 8) AS n
"""

EXPIRED = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT md5('x' || n)::uuid, 'globex', 'delivered', now() - interval '9 days',
       jsonb_build_object('provider', 'postmark', 'provider_message_id', 'old-' || n), true,
       now() AT TIME ZONE 'UTC' - interval '9 days' + n * interval '1 hour'
  FROM generate_series(1, 5) AS n
"""

# A day of sweeps, a backlog that came and went, and an hour without any sweep.
RUNS = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, scanned, linked, unmatched,
       ambiguous, tenant_mismatch, unmatchable, duration_ms, remaining, linkable_since, covered_until, open_groups)
SELECT t, t + interval '1 second', 'full', 'beat', 'ok', o.total + 12, 12, o.total * 7 / 10, o.total / 10,
       o.total / 10, o.total / 10, 100 + o.total / 200, o.total + o.late,
       CASE WHEN o.late > 0 THEN t - make_interval(secs => 40 * (n - 119)) END,
       t - interval '1 minute',
       (SELECT jsonb_agg(jsonb_build_object('state', s.state, 'tenant_id', 'acme', 'provider', 'postmark',
                                            'orphans', s.orphans))
          FROM (VALUES ('unmatched', o.total * 7 / 10), ('ambiguous', o.total / 10), ('tenant_mismatch', o.total / 10),
                       ('unmatchable', o.total / 10), ('matched', o.late)) AS s (state, orphans))
  FROM generate_series(now() AT TIME ZONE 'UTC' - interval '24 hours',
                       now() AT TIME ZONE 'UTC' - interval '10 minutes', interval '5 minutes')
       WITH ORDINALITY AS r (t, n)
 CROSS JOIN LATERAL (
         SELECT (CAST(:open AS float8) * least(1, 0.25 + 0.75 * n / 288 + 0.2 * sin(n / 18.0)))::bigint AS total,
                CASE WHEN n BETWEEN 120 AND 150 THEN (n - 119) * CAST(:open AS bigint) / 1000 ELSE 0 END AS late) AS o
 WHERE n NOT BETWEEN 190 AND 205
 ORDER BY n
"""


def lay_out(engine: sa.Engine, opened: int) -> None:
    """Insert *opened* open orphans of every state and a day of runs, after a sweep that has linked eight."""
    with engine.begin() as connection:
        for statement in (RUNS, DELIVERIES, OPEN, LINKED, EXPIRED):
            if opened or statement not in (OPEN, EXPIRED):
                connection.execute(sa.text(statement), {"open": opened} if ":open" in statement else {})
    mailglass_reconcile.reconcile()
    with engine.connect() as connection, connection.execution_options(isolation_level="AUTOCOMMIT"):
        connection.exec_driver_sql("ANALYZE")


# Mail of three kinds, through two providers; every fifth message of `globex` went to two people.
SENT = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       provider, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n * 9000), 12, '0')
            || '7' || substr(md5('s' || n), 1, 3) || '8' || substr(md5('t' || n), 1, 15) AS uuid),
       CASE WHEN n > 900 THEN 'globex' ELSE 'acme' END,
       (ARRAY['Receipt', 'Welcome', 'PasswordReset'])[n % 3 + 1], 'transactional', 'canary' || n || '@example.com',
       'example.com', 'msg-' || CASE WHEN n > 900 THEN 900 + (n - 900) / 2 ELSE n END,
       NULL, 'dispatched', now() AT TIME ZONE 'UTC' - n * interval '9 seconds',
       now() AT TIME ZONE 'UTC' - n * interval '9 seconds', now() AT TIME ZONE 'UTC' - n * interval '9 seconds',
       now() AT TIME ZONE 'UTC' - n * interval '9 seconds'
  FROM generate_series(1, 920) AS n
"""

# Since a deployment, webhooks of `acme` come under the tenant `default`; before, they found their deliveries.
REPORTED = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT CAST(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n * 8000), 12, '0')
            || '7' || substr(md5('u' || n), 1, 3) || '8' || substr(md5('v' || n), 1, 15) AS uuid),
       CASE WHEN n > 900 THEN 'globex' WHEN n BETWEEN 10 AND 450 THEN 'default' ELSE 'acme' END,
       (ARRAY['delivered', 'opened', 'bounced', 'clicked'])[n % 4 + 1],
       now() AT TIME ZONE 'UTC' - n * interval '8 seconds',
       jsonb_build_object('provider', CASE WHEN n % 3 = 0 THEN 'sendgrid' ELSE 'postmark' END)
       || CASE WHEN n % 70 = 0 THEN '{}'
               WHEN n BETWEEN 460 AND 500 THEN jsonb_build_object('provider_message_id', md5('m' || n)::uuid)
               ELSE jsonb_build_object('provider_message_id',
                                       'msg-' || CASE WHEN n > 900 THEN 900 + (n - 900) / 2 ELSE n END) END,
       true, now() AT TIME ZONE 'UTC' - n * interval '8 seconds' - interval '70 seconds'
  FROM generate_series(1, 920) AS n
"""

# Handlers: a bounce that nobody could record, some that a mail server refuses, and new ones.
OUTBOX = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, next_at, error,
                                      inserted_at, finished_at)
SELECT CAST(substr(r.idempotency_key, 12) AS uuid), 'shop.mail.suppress', r.delivery_id, o.type,
       CASE WHEN r.place <= 3 THEN 'dead' ELSE 'waiting' END,
       CASE WHEN r.place <= 3 THEN 9 WHEN r.place <= 9 THEN 4 ELSE 0 END,
       now() AT TIME ZONE 'UTC' + CASE WHEN r.place <= 9 THEN interval '7 minutes' ELSE interval '4 seconds' END,
       CASE WHEN r.place <= 3 THEN 'IntegrityError' WHEN r.place <= 9 THEN 'ConnectTimeout' END,
       now() AT TIME ZONE 'UTC' - interval '2 days',
       CASE WHEN r.place <= 3 THEN now() AT TIME ZONE 'UTC' - interval '3 hours' END
  FROM (SELECT *, row_number() OVER (ORDER BY id) AS place FROM mailglass_events
         WHERE type = 'reconciled' ORDER BY id LIMIT 12) AS r
  JOIN mailglass_events AS o ON o.id = CAST(substr(r.idempotency_key, 12) AS uuid)
"""

# A quiet day of sweeps with one incident that came and went, an hour in which nothing swept, and recent sweeps.
QUIET_DAY = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error, scanned, linked, unmatched,
       ambiguous, unmatchable, tenant_mismatch, skipped, duration_ms, remaining, linkable_since, covered_until,
       open_groups)
SELECT t, t + interval '1 second', 'full', 'beat', CASE WHEN n = 120 THEN 'failed' ELSE 'ok' END,
       CASE WHEN n = 120 THEN 'DatabaseUnavailableError' END,
       60 + o.late + o.astray, 12, o.waiting, 8, 6, o.astray, o.late, 180 + n % 90 + o.late / 4,
       o.waiting + 14 + o.late + o.astray,
       CASE WHEN o.late > 0 THEN t - make_interval(secs => 300 * (n - 118)) END,
       t - interval '1 minute',
       (SELECT jsonb_agg(jsonb_build_object('state', s.state, 'tenant_id', 'acme', 'provider', 'postmark',
                                            'orphans', s.orphans))
          FROM (VALUES ('unmatched', o.waiting), ('ambiguous', 8), ('unmatchable', 6), ('matched', o.late),
                       ('tenant_mismatch', o.astray))
                 AS s (state, orphans))
  FROM generate_series(now() AT TIME ZONE 'UTC' - interval '24 hours',
                       now() AT TIME ZONE 'UTC' - interval '6 minutes', interval '5 minutes')
       WITH ORDINALITY AS r (t, n)
 CROSS JOIN LATERAL (SELECT (40 + 25 * sin(n / 30.0))::bigint AS waiting,
                            CASE WHEN n BETWEEN 119 AND 124 THEN 408 * (n - 118) / 6 ELSE 0 END AS late,
                            CASE WHEN n > 275 THEN (n - 275) * 36 ELSE 0 END AS astray) AS o
 WHERE n NOT BETWEEN 200 AND 212
 ORDER BY n
"""
RECENT = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, runs, scanned, duration_ms)
SELECT t, t + interval '59 seconds', 'recent', 'beat', 'ok', 60, 0, 90
  FROM generate_series(now() AT TIME ZONE 'UTC' - interval '40 minutes',
                       now() AT TIME ZONE 'UTC' - interval '1 minute', interval '1 minute')
         AS t
"""
PRUNED = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, expired, duration_ms)
SELECT now() AT TIME ZONE 'UTC' - interval '2 hours', now() AT TIME ZONE 'UTC' - interval '2 hours', 'prune', 'beat',
       'ok', 5, 640
"""


def incident(engine: sa.Engine) -> None:
    """Plant webhooks of the wrong tenant, a failing handler, and a sweep that left much."""
    with engine.begin() as connection:
        for statement in (PRUNED, QUIET_DAY, RECENT, SENT, REPORTED, EXPIRED):
            connection.execute(sa.text(statement))
    with sweeping.held(engine, free=30):
        mailglass_reconcile.reconcile()
    with engine.begin() as connection:
        connection.execute(sa.text(OUTBOX))
    with engine.connect() as connection, connection.execution_options(isolation_level="AUTOCOMMIT"):
        connection.exec_driver_sql("ANALYZE")
