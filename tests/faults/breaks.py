"""Faults that no tool makes, because they are in SQL, scripts, protocols and processes, each with its test.

`make mutation` breaks the Python of rules, sweep, record and projector.
"""

from __future__ import annotations

from typing import NamedTuple


class Break(NamedTuple):
    """A fault: in each file, a text that stands there once and what takes its place; and the test that catches it."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    test: str


BREAKS = (
    Break(
        "the note of a recipient that was not checked stays on our writers' events",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "WHEN starts_with(e.idempotency_key, 'webhook:') THEN m.metadata - 'recipient_checked'",
                "WHEN starts_with(e.idempotency_key, 'webhook:') THEN m.metadata",
            ),
        ),
        "store/test_raw_webhooks.py::test_events_of_our_writers_carry_no_such_note",
    ),
    Break(
        "a webhook that is an orphan does not end a silence",
        (
            (
                "mailglass_reconcile/store/reports.py",
                "        last = min(reported, arrived)\n",
                "        last = reported\n",
            ),
        ),
        "ops/test_missing_reports.py::test_webhooks_that_have_stopped_are_found_everywhere",
    ),
    Break(
        "an error quotes the database's own words",
        (
            (
                "mailglass_reconcile/errors.py",
                'DatabaseRefusedError(f"the database refused a statement (SQLSTATE {state})")',
                'DatabaseRefusedError(f"the database refused a statement (SQLSTATE {state}): {error}")',
            ),
        ),
        "faults/test_secrets.py::test_a_recording_that_the_database_refuses_says_nothing_of_them",
    ),
    Break(
        "a sweep writes a recipient back that was erased meanwhile",
        (
            (
                "mailglass_reconcile/store/stored_keys.py",
                "recipient = CASE WHEN NOT o.recipient_lost THEN coalesce(o.recipient, k.recipient) END,",
                "recipient = coalesce(o.recipient, k.recipient),",
            ),
        ),
        "record/test_erasing.py::test_a_sweep_that_has_read_the_address_before_does_not_write_it_back",
    ),
    Break(
        "a link is appended without ON CONFLICT",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "    FROM claimed\n      ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING\n",
                "    FROM claimed\n",
            ),
        ),
        "faults/test_hostile_rows.py::test_a_key_that_is_taken_for_another_delivery_settles_its_orphan",
    ),
    Break(
        "a link waits for a delivery that is locked",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "FOR NO KEY UPDATE OF d SKIP LOCKED",
                "FOR NO KEY UPDATE OF d",
            ),
        ),
        "faults/test_faults_postgres.py::test_rows_that_somebody_else_holds_are_passed_over_without"
        "_waiting_or_rolling_back",
    ),
    Break(
        "a link waits for an orphan that is locked",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "FOR UPDATE OF o SKIP LOCKED\n     FOR NO KEY",
                "FOR UPDATE OF o\n     FOR NO KEY",
            ),
        ),
        "faults/test_faults_postgres.py::test_rows_that_somebody_else_holds_are_passed_over_without"
        "_waiting_or_rolling_back",
    ),
    Break(
        "a link locks no delivery",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "\n     FOR NO KEY UPDATE OF d SKIP LOCKED",
                "",
            ),
        ),
        "faults/test_faults_postgres.py::test_rows_that_somebody_else_holds_are_passed_over_without"
        "_waiting_or_rolling_back",
    ),
    Break(
        "the trigger takes every key for one with a UUID in it",
        (
            (
                "alembic/versions/0001_open_orphans.py",
                "            ~ '^reconciled:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')\n",
                "            ~ '^reconciled:')\n",
            ),
        ),
        "store/test_open_set.py::test_a_row_that_the_ledger_takes_is_never_refused",
    ),
    Break(
        "the migration takes another role's object for its own",
        (
            (
                "mailglass_reconcile/store/migration/state.py",
                "    if found:\n        objects",
                "    if not found and found:\n        objects",
            ),
        ),
        "store/test_trust.py::test_a_name_of_ours_that_another_role_took_is_refused_with_object_and_owner",
    ),
    Break(
        "row security hides rows from us",
        (
            (
                "mailglass_reconcile/store/database.py",
                '    "row_security": "off",\n',
                '    "row_security": "on",\n',
            ),
        ),
        "store/test_trust.py::test_a_policy_that_would_hide_rows_fails_the_command_with_one_line_and_changes_nothing",
    ),
    Break(
        "the migration does not get past an autovacuum",
        (
            (
                "mailglass_reconcile/store/migration/steps.py",
                "                    self._shut_out_autovacuum(tx)\n",
                '                    tx.execute(_IMPATIENCE, {"milliseconds": str(LOCK_TIMEOUT_MS)})\n',
            ),
        ),
        "store/test_busy_migration.py::test_a_migration_gets_past_an_autovacuum_and_no_writer_fails",
    ),
    Break(
        "the migration makes a second set of tables if the schema was forgotten",
        (
            (
                "mailglass_reconcile/store/migration/preflight.py",
                "            _refuse_second_set(tx)\n",
                "            pass\n",
            ),
        ),
        "store/test_beside_mailglass.py::test_a_forgotten_schema_does_not_make_a_second_set_of_tables",
    ),
    Break(
        "the trigger believes an infinite arrival",
        (
            (
                "alembic/versions/0001_open_orphans.py",
                " OR NOT isfinite(NEW.inserted_at)\n",
                "\n",
            ),
        ),
        "store/test_arrival.py::test_a_row_whose_time_cannot_be_arrives_when_it_is_written",
    ),
    Break(
        "an event of any type closes an orphan",
        (
            (
                "alembic/versions/0001_open_orphans.py",
                "  WHEN (NEW.type = 'reconciled'\n        AND current_setting",
                "  WHEN (current_setting",
            ),
        ),
        "store/test_arrival.py::test_a_forged_reconciled_event_closes_no_orphan",
    ),
    Break(
        "the prune believes a forged `reconciled` event",
        (
            (
                "mailglass_reconcile/store/repair.py",
                "            WHERE EXISTS (SELECT FROM {schema}.mailglass_events AS r WHERE {links} OFFSET 0)\n",
                "            WHERE EXISTS (SELECT FROM {schema}.mailglass_events AS r"
                " WHERE r.idempotency_key = 'reconciled:' || p.event_id)\n",
            ),
        ),
        "store/test_arrival.py::test_a_forged_reconciled_event_closes_no_orphan",
    ),
    Break(
        "the repair takes a session's local time for the arrival",
        (
            (
                "mailglass_reconcile/store/repair.py",
                "              THEN m.made_at\n",
                "              THEN p.inserted_at\n",
            ),
        ),
        "store/test_arrival.py::test_an_orphan_that_the_trigger_did_not_see_arrived_when_its_uuid_was_made",
    ),
    Break(
        "a lost connection is not tried again",
        (
            (
                "mailglass_reconcile/store/database.py",
                "            if not is_passing(error):\n",
                "            if error:\n",
            ),
        ),
        "faults/test_faults_connection.py::test_a_connection_lost_at_a_commit_costs_no_link_and_tells_of_each_once",
    ),
    Break(
        "the publisher believes a replica's OK",
        (
            (
                "mailglass_reconcile/pubsub/publisher.py",
                "if not string.find(replication",
                "if false and not string.find(replication",
            ),
        ),
        "faults/test_faults_redis.py::test_a_replica_takes_messages_and_tells_nobody_so_they_count_as_failed",
    ),
    Break(
        "a tenant's name is not encoded in its channel",
        (
            (
                "mailglass_reconcile/pubsub/channels.py",
                'tenant = quote(tenant_id, safe="").replace("~", "%7E")',
                "tenant = tenant_id",
            ),
        ),
        "faults/test_hostile_tenants.py::test_no_two_tenants_share_a_channel_or_match_one_another_as_a_pattern",
    ),
    Break(
        "a subscription does not notice that redis-py has connected again",
        (
            (
                "mailglass_reconcile/pubsub/subscriber.py",
                '            raise _LostError("connection closed")\n',
                '            return {"type": "message", "channel": "mailglass:events:acme", "data": "{}"}\n',
            ),
        ),
        "pubsub/test_subscriptions.py::test_a_connection_that_redis_py_makes_again_by_itself_is_missed",
    ),
    Break(
        "a send keeps its provider although a delivery without one has its id",
        (
            (
                "mailglass_reconcile/store/sends.py",
                "AND (num_nulls(d.provider) = 1 OR d.provider",
                "AND (d.provider",
            ),
        ),
        "record/test_sends.py::test_an_id_that_another_delivery_has_is_stored_without_a_provider",
    ),
    Break(
        "sends store their deliveries in any order",
        (
            (
                "mailglass_reconcile/store/sends.py",
                ' WHERE provider IS NOT NULL ORDER BY message_id COLLATE "C"\n',
                " WHERE provider IS NOT NULL\n",
            ),
        ),
        "record/test_sends.py::test_deliveries_are_stored_in_the_order_of_their_message_ids",
    ),
    Break(
        "the lock's script believes a lock that never expires",
        (
            (
                "mailglass_reconcile/singleton/lock.py",
                "and left > 0 and left <= ARGV[3] * 1000",
                "",
            ),
        ),
        "singleton/test_hostile_lock.py::test_a_lock_that_no_sweep_of_ours_left_is_taken_over",
    ),
    Break(
        "a forked child uses its parent's connections",
        (
            (
                "mailglass_reconcile/runtime.py",
                "_Configured.engine.dispose(close=False)",
                "pass",
            ),
        ),
        "singleton/test_hostile_lock.py::test_after_a_fork_a_child_opens_its_own_connections_and_leaves_the_parents",
    ),
    Break(
        "the look-up of a wide id may use another index",
        (
            (
                "mailglass_reconcile/store/deliveries.py",
                "< hashtextextended(q.tenant_id, 0)\n"
                "            AND provider_message_id = q.id AND num_nulls(provider) = 1",
                "< hashtextextended(q.tenant_id, 0)\n            AND provider_message_id = q.id AND provider IS NULL",
            ),
        ),
        "sweep/test_plans.py::test_a_question_to_a_wide_id_reads_few_rows",
    ),
    Break(
        "anybody may call the trigger's function",
        (
            (
                "alembic/versions/0001_open_orphans.py",
                "REVOKE ALL ON FUNCTION {schema}.mailglass_open_orphans_add(), "
                "{schema}.mailglass_open_orphans_remove() FROM PUBLIC;\n",
                "",
            ),
        ),
        "store/test_open_set.py::test_nobody_can_put_our_functions_on_a_table_of_their_own",
    ),
    Break(
        "the index of recipients leaves a letter in upper case",
        (
            (
                "mailglass_reconcile/store/schema.py",
                "'abcdefghijklmnopqrstuvwxyz'),",
                "'abcdefghijklmnopqrstuvwxyZ'),",
            ),
        ),
        "sweep/test_recipients.py::test_the_index_has_the_key_of_every_recipient",
    ),
    Break(
        "the first range of a fan-out frees the lock",
        (
            (
                "mailglass_reconcile/singleton/lock.py",
                "if others == 0 then",
                "if true then",
            ),
        ),
        "singleton/test_fan_out.py::test_the_last_of_those_who_share_a_lock_frees_it",
    ),
    Break(
        "follow ends when the database is lost",
        (
            (
                "mailglass_reconcile/cli/follow.py",
                "            if self._first or isinstance(",
                "            if error or isinstance(",
            ),
        ),
        "faults/test_faults_follow.py::test_follow_outlives_restarts_of_postgres_and_of_redis_and_s"
        "ays_so_in_a_line_each",
    ),
    Break(
        "SQLAlchemy may end the transaction of Django's connection",
        (
            (
                "mailglass_reconcile/contrib/django/database.py",
                "    return _Lent(lent)\n",
                "    return lent\n",
            ),
        ),
        "contrib/test_django_connection.py::test_what_is_written_commits_with_the_applications_own_and_not_before",
    ),
    Break(
        "`migrate … zero` leaves our tables",
        (
            (
                "mailglass_reconcile/contrib/django/migrations/0001_open_orphans.py",
                "migrations.RunPython(migrating.migrate, migrating.remove)",
                "migrations.RunPython(migrating.migrate, migrations.RunPython.noop)",
            ),
        ),
        "contrib/test_django_schema.py::test_migrate_makes_our_tables_and_to_zero_removes_what_is_ours",
    ),
    Break(
        "the dispatcher skips a claimed row that another one reads",
        (
            (
                "mailglass_reconcile/store/outbox.py",
                " AND c.handler <> ALL (o.done)\n",
                " AND c.handler <> ALL (o.done) AND o.event_id = (SELECT x.event_id FROM {schema}.mailglass_hook_outbox"
                " AS x WHERE x.event_id = c.event_id FOR UPDATE SKIP LOCKED)\n",
            ),
        ),
        "hooks/test_handlers.py::test_a_claimed_row_that_another_dispatcher_looks_at_for_a_moment_is_waited_for",
    ),
    Break(
        "a handler runs under a savepoint",
        (
            (
                "mailglass_reconcile/hooks/running.py",
                "                yield Work(connection)\n",
                "                with connection.begin_nested():\n                    yield Work(connection)\n",
            ),
        ),
        "hooks/test_handlers.py::test_what_a_joined_session_has_flushed_stays",
    ),
    Break(
        "a handler's COMMIT without an answer is a failure",
        (
            (
                "mailglass_reconcile/hooks/dispatcher.py",
                "        return [name for name in self.ended if name not in outcome.done]\n",
                "        return [name for name, error in self.ended.items() if error or name not in outcome.done]\n",
            ),
        ),
        "faults/test_faults_handlers.py::test_a_connection_lost_at_a_commit_loses_and_doubles_no_effect",
    ),
    Break(
        "after a handler's COMMIT without an answer, nobody waits for its end",
        (
            (
                "mailglass_reconcile/store/outbox.py",
                " ORDER BY event_id FOR UPDATE\n",
                " ORDER BY event_id\n",
            ),
        ),
        "faults/test_faults_handlers.py::test_a_commit_that_the_server_has_not_ended_yet_is_waited_for",
    ),
    Break(
        "a handler that has returned is done, whatever the database holds",
        (
            (
                "mailglass_reconcile/hooks/dispatcher.py",
                "        is_done = {one.name for one in self.handlers} <= set(outcome.done)\n",
                "        is_done = {one.name for one in self.handlers} <= {*outcome.done, *self.ended}\n",
            ),
        ),
        "hooks/test_handlers.py::test_a_handler_that_ends_the_transaction_fails_and_takes_nobody_with_it",
    ),
    Break(
        "with Django's autocommit off, a handler's limits stay in the application's transaction",
        (
            (
                "mailglass_reconcile/contrib/django/database.py",
                "    nested = djangos.in_atomic_block or not djangos.get_autocommit()\n    with connection()",
                "    nested = djangos.in_atomic_block\n    with connection()",
            ),
        ),
        "contrib/test_django_handlers.py::test_each_effect_is_there_once_in_every_mode_of_autocommit",
    ),
    Break(
        "no alert fires if a trigger is missing",
        (
            (
                "docs/monitoring/alerts.yml",
                "expr: mailglass_reconcile_triggers_present == 0",
                "expr: mailglass_reconcile_triggers_present == -1",
            ),
        ),
        "monitoring/test_alerts.py::test_a_trigger_that_was_dropped_is_missing",
    ),
    Break(
        "a link is published before its commit",
        (
            (
                "mailglass_reconcile/sweep/link.py",
                "        doubtful.claimed = len(linked) + len(known)\n",
                "        doubtful.claimed = len(linked) + len(known)\n"
                "        projector.early = projector.publish([projector.message(event) for event in linked])\n",
            ),
            (
                "mailglass_reconcile/sweep/reconciler.py",
                "        batch = link_batch(",
                "        projector.publish = projector.early = self.publisher.publish\n        batch = link_batch(",
            ),
            (
                "mailglass_reconcile/sweep/reconciler.py",
                "self.publisher.publish([projector.message(one) for one in batch.linked])",
                "projector.early",
            ),
        ),
        "sweep/test_sweep.py::test_one_sweep_links_exactly_the_matchable_half",
    ),
    Break(
        "after a COMMIT without an answer, nobody looks what is there",
        (
            (
                "mailglass_reconcile/sweep/link.py",
                "        if not (doubtful.linked and _was_committed(connected, doubtful)):\n",
                "        if connected:\n",
            ),
        ),
        "faults/test_faults_connection.py::test_a_connection_lost_at_a_commit_costs_no_link_and_tells_of_each_once",
    ),
    Break(
        "after a COMMIT without an answer, nobody waits for its end",
        (
            (
                "mailglass_reconcile/sweep/link.py",
                "            if not in_progress(tx, doubtful.xact_id):\n",
                "            if doubtful:\n",
            ),
        ),
        "faults/test_faults_standby.py::test_a_commit_that_waits_for_a_stand_by_is_waited_for_and_i"
        "ts_links_are_told_of",
    ),
    Break(
        "neither the rule nor the claim compares tenants",
        (
            (
                "mailglass_reconcile/rules/matching.py",
                "if one.tenant_id == tenant_id:",
                "if True:",
            ),
            (
                "mailglass_reconcile/store/ledger.py",
                " AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id\n",
                "\n",
            ),
        ),
        "faults/test_hostile_tenants.py::test_orphans_of_hostile_tenants_are_linked_and_told_of_within_their_own",
    ),
    Break(
        "an event that was not inserted is projected",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "SELECT CASE WHEN id IN (SELECT id FROM appended) THEN id::text END AS reconciled_id",
                "SELECT id::text AS reconciled_id",
            ),
        ),
        "faults/test_hostile_rows.py::test_a_key_that_is_taken_for_another_delivery_settles_its_orphan",
    ),
    Break(
        "an orphan that was linked stays in the open set",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "mailglass_open_orphans WHERE event_id = ANY (ARRAY(SELECT event_id FROM linked))",
                "mailglass_open_orphans WHERE false",
            ),
        ),
        "sweep/test_sweep.py::test_one_sweep_links_exactly_the_matchable_half",
    ),
    Break(
        "other roles' functions are found before Postgres's own",
        (
            (
                "mailglass_reconcile/store/database.py",
                '    "search_path": "pg_catalog, pg_temp",\n',
                '    "search_path": "public, pg_catalog",\n',
            ),
        ),
        "store/test_trust.py::test_what_fits_a_call_of_ours_better_than_postgres_s_own_is_not_called",
    ),
    Break(
        "a lock is waited for without end",
        (
            (
                "mailglass_reconcile/store/database.py",
                '"lock_timeout": str(max(1, lock_timeout_ms))',
                '"lock_timeout": "0"',
            ),
        ),
        "faults/test_faults_resources.py::test_every_statement_of_a_transaction_has_a_lock_timeout_"
        "and_a_statement_timeout",
    ),
    Break(
        "a sweep's reads may sort",
        (
            (
                "mailglass_reconcile/store/database.py",
                '"sorts": "off" if read_only else "on"',
                '"sorts": "on"',
            ),
        ),
        "sweep/test_plans.py::test_what_comes_first_is_read_until_there_is_enough",
    ),
    Break(
        "a webhook inserts its events in the order in which they came",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                ' ORDER BY idempotency_key COLLATE "C"\n',
                "\n",
            ),
        ),
        "record/test_locking.py::test_events_are_inserted_in_the_order_of_their_keys",
    ),
    Break(
        "keys are stored by a join, which the planner may begin where it likes",
        (
            (
                "mailglass_reconcile/store/stored_keys.py",
                "   CROSS JOIN LATERAL (SELECT event_id, tenant_id FROM {schema}.mailglass_open_orphans\n"
                "                        WHERE event_id = k.event_id AND rule IS NULL FOR UPDATE SKIP LOCKED) AS o\n",
                "    JOIN {schema}.mailglass_open_orphans AS o ON o.event_id = k.event_id\n"
                "   WHERE o.rule IS NULL\n     FOR UPDATE OF o SKIP LOCKED\n",
            ),
        ),
        "sweep/test_plans.py::test_keys_of_a_slice_are_stored_without_reading_the_ledger_whole",
    ),
    Break(
        "two lists are joined pair by pair",
        (
            (
                "mailglass_reconcile/store/ledger.py",
                "  SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE\n",
                "  SELECT * FROM claimed WHERE id IN (SELECT id FROM appended)\n",
            ),
        ),
        "sweep/test_plans.py::test_a_link_is_claimed_appended_and_closed_by_primary_keys",
    ),
    Break(
        "each batch of a dispatcher begins with all events that wait",
        (
            (
                "mailglass_reconcile/store/outbox.py",
                "CASE WHEN o.state = 'waiting' THEN o.attempts = c.attempts END",
                "o.state = 'waiting' AND o.attempts = c.attempts",
            ),
        ),
        "sweep/test_plans.py::test_claimed_events_are_read_by_primary_keys",
    ),
    Break(
        "asyncpg does not learn that strings are text",
        (
            (
                "mailglass_reconcile/store/database.py",
                "        return tuple(name for name, value in parameters.items() if isinstance(value, str))\n",
                "        return ()\n",
            ),
        ),
        "record/test_drivers.py::test_every_writer_and_reader_does_what_it_does",
    ),
    Break(
        "a connection whose encoding lacks letters is taken",
        (
            (
                "mailglass_reconcile/store/borrowing.py",
                'if "".join(filter(str.isalnum, encoding)).upper() not in UTF8:',
                "if not encoding:",
            ),
        ),
        "record/test_after_commit.py::test_a_connection_that_is_not_utf8_is_refused_in_a_line_that_says_what_to_set",
    ),
    Break(
        "what a savepoint has undone is broadcast",
        (
            (
                "mailglass_reconcile/record/after_commit.py",
                "events += [event for event in step.events if _id(event) in present]",
                "events += step.events",
            ),
        ),
        "record/test_after_commit.py::test_what_a_savepoint_has_undone_is_not_broadcast",
    ),
    Break(
        "Django's cursors put values into the text",
        (
            (
                "mailglass_reconcile/contrib/django/database.py",
                "return psycopg.Cursor(self._djangos)",
                "return self._djangos.cursor()",
            ),
        ),
        "contrib/test_django_commits.py::test_no_value_is_in_the_text_of_a_statement",
    ),
    Break(
        "a transaction that the application ends by hand is taken for one of Django's",
        (
            (
                "mailglass_reconcile/contrib/django/database.py",
                "djangos.commit_on_exit if djangos.in_atomic_block else djangos.get_autocommit()",
                "djangos.in_atomic_block or djangos.get_autocommit()",
            ),
        ),
        "contrib/test_django_commits.py::test_a_send_is_committed_when_the_application_commits",
    ),
    Break(
        "a function lets the planner choose the path",
        (
            (
                "mailglass_reconcile/store/database.py",
                '    "enable_seqscan": "off",\n    "enable_hashjoin": "off",\n    "enable_mergejoin": "off",\n'
                '    "enable_bitmapscan": "off",\n',
                "",
            ),
        ),
        "sweep/test_plans.py::test_storing_sends_looks_for_their_ids_only",
    ),
    Break(
        "the savepoint ends although more of the block follows",
        (
            (
                "mailglass_reconcile/projector.py",
                "is_last = tx.hook_types.isdisjoint(attached)",
                "is_last = True",
            ),
        ),
        "record/test_sessions.py::test_nothing_is_written_if_the_handlers_outbox_refuses_it",
    ),
    Break(
        "psycopg2 sends Latin-1 to a server that reads UTF-8",
        (
            (
                "mailglass_reconcile/store/borrowing.py",
                'if connection.dialect.driver == "psycopg2" and driver.encoding != "UTF8" else of_server',
                "if connection is None else of_server",
            ),
        ),
        "record/test_drivers.py::test_psycopg2_with_another_encoding_is_told_what_to_set",
    ),
    Break(
        "a server of the tests outlives its block",
        (
            (
                "mailglass_reconcile/testing/processes.py",
                "        self.stop()\n        shutil",
                "        shutil",
            ),
        ),
        "testing/test_servers.py::test_a_server_is_gone_when_its_block_ends",
    ),
    Break(
        "the tests' Redis runs as root",
        (
            (
                "mailglass_reconcile/testing/servers.py",
                'Process("Valkey", user=servers_user(), ',
                'Process("Valkey", ',
            ),
        ),
        "testing/test_servers.py::test_the_valkey_does_not_run_as_root_and_gets_nothing_of_the_environment",
    ),
    Break(
        "Compose lets beat reach the database",
        (
            (
                "docker-compose.yml",
                "  beat:\n    <<: *service\n    networks: [redis]\n",
                "  beat:\n    <<: *service\n    networks: [database, redis]\n",
            ),
        ),
        "test_compose.py::test_beat_cannot_reach_the_database_and_the_page_cannot_reach_redis",
    ),
)
