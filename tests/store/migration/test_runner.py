"""Migrations: what they make and keep, and that a Mailglass that writes meanwhile is not disturbed."""

import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle

import psycopg
import pytest
import sqlalchemy as sa

import processes
from catalog import installation, lines_of_ours, live, url_of
from faults import servers
from history import DELIVERY, ORPHAN, RECONCILED, insert_history, new_id, sweep, write_until
from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    LedgerImmutableError,
    MailglassReconcileError,
    SchemaOutdatedError,
)
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import script
from mailglass_reconcile.store.schema.revision import REVISIONS, VERSION
from marking import nightly_unless
from revisions import NEXT, UNRELEASED
from shapes import SCHEMAS, make_mailglass_tables, roll_back
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

ALL_STEPS = 36
on_2_x = pytest.mark.parametrize("shape", ["2.x"], indirect=True)
"""For what Mailglass's version cannot change: 0.1.1 lacks columns and an index, and its schema is `public`."""
OVER_THE_TENANT = {
    "mailglass_events_tenant_recent_idx",
    *(f"mailglass_deliveries_tenant_{name}_idx" for name in ("recent", "recipient", "stream_terminal")),
    "mailglass_webhook_events_tenant_status_idx",
}


@pytest.mark.guard
def test_an_empty_database_gets_mailglass_s_tables_exactly_and_ours(empty_database_url, make_database, drop_database):
    """Everything else equals the schema file's result, but for the comment with Mailglass's version.

    And the function that refuses a DELETE, which lets retention pass; and what keeps an event's update in its page:
    space, and one index of ours for Mailglass's three over the tenant. No statement of ours needs its others over the
    tenant.
    """
    migrated = installation(empty_database_url)
    result = migrated.migrate()
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    try:
        expected = live(make_database(name)).objects()
    finally:
        drop_database(name)
    refusing = "function mailglass_raise_immutability "
    objects = {
        line.replace("r mailglass_deliveries options {fillfactor=50}", "r mailglass_deliveries options ")
        for line in migrated.objects()
        if not line.startswith(refusing)
    }
    expected = {line for line in expected if not line.startswith(refusing) and not OVER_THE_TENANT & set(line.split())}
    assert objects - lines_of_ours(objects) == {line.removesuffix("comment 2") + "comment " * line.endswith("comment 2")
                                       for line in expected}  # fmt: skip
    assert migrated.is_current()
    assert result[0].startswith('database "mgtest_')
    assert result[0].endswith('", schema "public"')
    assert [line.partition(" ")[0] for line in result] == [
        "database",
        "creating",
        *("revision" for _ in REVISIONS),
        "creating",
        "fill",
        "done:",
    ]
    assert result[1] == (
        "creating the tables of deliveries, events and webhooks, because there are none (if you also run Mailglass, the"
        " Elixir library, its own migrations must make them)"
    )
    assert result[-1] == f"done: revision {VERSION}"


def test_our_objects_are_tables_triggers_functions_two_indexes_and_the_version(unmigrated, shape):
    """Nothing else is added to a live database; since 2.5 Mailglass has one of the indexes itself."""
    database = unmigrated
    before = database.objects()
    database.migrate()
    added = database.objects() - before
    assert added == lines_of_ours(database.objects())
    kinds = [line.split()[0] for line in added]
    assert kinds.count("trigger") == 2
    functions = script.steps_of_kind("function").keys() - script.steps_of_kind("trigger").keys()
    assert kinds.count("function") == 2 + len(functions)
    assert {line.split()[1] for line in added if line.startswith("r ")} == {
        "mailglass_open_orphans",
        "mailglass_open_orphan_ids",
        "mailglass_handler_outbox",
        "mailglass_handled_types",
        "mailglass_reconcile_refusals",
        "mailglass_reconcile_retention",
        "mailglass_reconcile_runs",
        "mailglass_reconcile_version",
    }
    indexes = {
        line
        for line in added
        if line.startswith("index") and ("prune_idx" in line or "deliveries_reconcile_idx" in line)
    }
    assert len(indexes) == {"0.1.1": 2, "2.x": 1}[shape]


@pytest.mark.guard
def test_a_live_database_keeps_every_object_and_row(unmigrated):
    """Mailglass's tables are unchanged, with every row."""
    database = unmigrated
    insert_history(database)
    objects, rows = database.objects(), database.rows()
    database.migrate()
    assert objects <= database.objects()
    assert database.rows() == rows


@on_2_x
def test_the_open_set_is_filled_with_what_is_open_within_the_maximum_age(unmigrated):
    """Neither reconciled nor expired orphans enter it, and a missing delivery status does not matter."""
    database = unmigrated
    database.run(
        "ALTER TABLE mailglass_deliveries DROP COLUMN status, DROP COLUMN idempotency_key, DROP COLUMN last_error"
    )
    database.run(
        """INSERT INTO mailglass_deliveries
           (id, tenant_id, mailable, stream, recipient, recipient_domain, last_event_type, last_event_at,
            inserted_at, updated_at)
           VALUES (gen_random_uuid(), 't', 'W', 's', 'r', 'd', 'queued', now(), now(), now())"""
    )
    still_open, settled, expired = new_id(), new_id(), new_id()
    for id_, age in ((still_open, "1 hour"), (settled, "1 hour"), (expired, "8 days")):
        database.run(ORPHAN.format(id=id_, age=age))
    database.run(RECONCILED.format(id=settled))
    database.migrate()
    assert database.open_set() == {still_open}


@on_2_x
def test_more_orphans_than_a_batch_are_all_filled_in(unmigrated):
    """The pages of the fill meet without a gap, also where many rows have the same time."""
    database = unmigrated
    database.run(
        """INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at)
           SELECT gen_random_uuid(), 't' || n % 3, 'opened', now(), true, (now() AT TIME ZONE 'UTC')
             FROM generate_series(1, 11000) AS n"""
    )
    database.migrate()
    assert len(database.open_set()) == 11_000


@on_2_x
@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        ("DROP TABLE mailglass_webhook_events", "table mailglass_webhook_events"),
        ("DROP INDEX mailglass_events_idempotency_key_idx", "index mailglass_events_idempotency_key_idx"),
        (
            "DROP INDEX mailglass_events_idempotency_key_idx;"
            " CREATE INDEX mailglass_events_idempotency_key_idx ON mailglass_events (idempotency_key)",
            "index mailglass_events_idempotency_key_idx is not unique, or has other columns",
        ),
        (
            "DROP INDEX mailglass_deliveries_provider_msg_id_idx; CREATE UNIQUE INDEX"
            " mailglass_deliveries_provider_msg_id_idx ON mailglass_deliveries (provider_message_id, provider)",
            "index mailglass_deliveries_provider_msg_id_idx is not unique, or has other columns",
        ),
        (
            "DROP INDEX mailglass_deliveries_provider_msg_id_idx",
            "index mailglass_deliveries_provider_msg_id_idx",
        ),
        (
            "ALTER TABLE mailglass_events DROP CONSTRAINT mailglass_events_pkey, ADD PRIMARY KEY (id, tenant_id)",
            "ADD CONSTRAINT mailglass_events_pkey PRIMARY KEY (id)",
        ),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_changed(unmigrated, damage, missing):
    """The version table is not made either."""
    database = unmigrated
    database.run(damage)
    before = database.objects()
    with pytest.raises(SchemaOutdatedError) as error:
        database.migrate()
    assert missing in str(error.value)
    assert "\n" not in str(error.value)
    assert database.objects() == before


def test_a_table_that_is_missing_beside_others_is_not_made_again(empty_database_url):
    """Without our tables, too: after `migrate --remove` nobody knows what it held."""
    database = installation(empty_database_url)
    database.migrate()
    database.run("DROP TABLE mailglass_deliveries CASCADE")
    database.remove()
    before = database.objects()
    with pytest.raises(SchemaOutdatedError, match="lacks table mailglass_deliveries"):
        database.migrate()
    assert database.objects() == before


def test_a_plan_prints_the_steps_and_their_sql_and_changes_nothing(unmigrated, shape):
    """The catalog is unchanged."""
    database = unmigrated
    insert_history(database)
    before = database.objects()
    result = database.migrate(plan=True)
    assert database.objects() == before
    assert not database.is_current()
    text = "\n".join(result)
    schema = SCHEMAS[shape]
    for sql in (f'CREATE TABLE "{schema}".mailglass_open_orphans', "TRIGGER mailglass_open_orphans_add",
                "CREATE INDEX CONCURRENTLY", f"CREATE TABLE {schema}.mailglass_reconcile_version",
                f"INSERT INTO {schema}.mailglass_reconcile_version"):  # fmt: skip
        assert sql in text
    assert "Mailglass's tables" not in text
    database.migrate()
    assert database.migrate(plan=True)[1:] == [f"-- nothing to do: the database is at revision {VERSION}"]


@pytest.mark.guard
def test_migrating_twice_changes_nothing_the_second_time(unmigrated):
    """It prints that there is nothing to do."""
    database = unmigrated
    database.migrate()
    before = database.objects()
    assert database.migrate()[1:] == [f"nothing to do: the database is at revision {VERSION}"]
    assert database.objects() == before


@pytest.mark.parametrize(
    ("steps", "shape"), [*zip(range(1, ALL_STEPS, 5), cycle(["2.x", "0.1.1"]), strict=False)], indirect=["shape"]
)
def test_an_interrupted_migration_can_be_run_again_or_removed(unmigrated, steps):
    """It may have reached any step."""
    database = unmigrated
    still_open, *_ = insert_history(database)
    before = database.objects()
    for finish in (database.migrate, database.remove):
        messages: list[str] = []

        def interrupt(line: str, reported: list[str] = messages) -> None:
            reported.append(line)
            if len(reported) == steps:
                raise KeyboardInterrupt

        try:
            database.migrate(interrupt)
        except KeyboardInterrupt:
            assert len(messages) == steps
        finish()
        if finish == database.migrate:
            assert database.is_current()
            assert database.open_set() == {still_open}
            database.remove()
        assert database.objects() == before


@pytest.mark.parametrize(("mailglass", "most"), nightly_unless((None, 1).__eq__, [(None, 1), ("0.1.1", 3), ("2.x", 3)]))
def test_a_migration_that_is_interrupted_after_each_step_ends_as_one_that_is_not(
    empty_database_url, make_database, drop_database, mailglass, most
):
    """On an empty database, which has all steps, every run takes one until none is left; on live tables, three."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"

    def run_some_steps(line: str) -> None:
        steps.append(line)
        if sum(line.startswith(("create ", "build ", "fill ")) for line in steps) > most:
            raise KeyboardInterrupt

    try:
        urls = (empty_database_url, make_database(name))
        interrupted, complete = (
            make_mailglass_tables(url, mailglass) if mailglass else installation(url) for url in urls
        )
        steps: list[str] = []
        runs = 0
        while not interrupted.is_current() and runs < 100:
            runs += 1
            steps.clear()
            with suppress(KeyboardInterrupt):
                interrupted.migrate(run_some_steps)
        complete.migrate()
        assert runs > 20 / most
        assert interrupted.objects() == complete.objects()
        assert interrupted.is_current()
    finally:
        drop_database(name)


@on_2_x
def test_an_interrupted_build_of_the_index_is_repeated(unmigrated):
    """The invalid index of a cancelled concurrent build is built again; the migration says what went wrong."""
    database = unmigrated
    with database.writing(DELIVERY), ThreadPoolExecutor() as pool:
        running = pool.submit(database.migrate)
        building = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%reconcile_idx%'"
        waiting = f"{building} AND state = 'active' AND wait_event_type = 'Lock' AND datname = current_database()"
        wait_until(lambda: database.values(waiting))
        database.values(f"SELECT pg_cancel_backend(pid) FROM ({waiting}) AS w")  # noqa: S608
        with pytest.raises(MailglassReconcileError):
            running.result(PATIENCE)
    assert not database.is_current()
    database.migrate()
    assert database.is_current()


@on_2_x
def test_two_migrations_at_once_both_end_well(unmigrated):
    """One waits for the other, also in threads of one process."""
    database = unmigrated
    insert_history(database)
    with ThreadPoolExecutor() as pool:
        for running in [pool.submit(database.migrate) for _ in range(3)]:
            running.result(PATIENCE)
    assert database.is_current()


@on_2_x
def test_writers_never_fail_while_a_migration_comes_and_goes(unmigrated):
    """Four sessions with Mailglass's lock timeout write on, and all of their orphans are in the open set."""
    database = unmigrated
    insert_history(database)
    stop, written_lines = threading.Event(), []
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write_until, stop, database, written_lines) for _ in range(4)]
        try:
            for _ in range(3):
                database.migrate()
                database.remove()
            database.migrate()
        finally:
            stop.set()
        for writer in writers:
            writer.result(PATIENCE)
    assert len(written_lines) > 4
    assert len(database.open_set()) == len(written_lines) + 1


@on_2_x
def test_a_long_transaction_delays_the_migration_and_fails_no_other_writer(unmigrated):
    """The migration retries its lock, and writers go on meanwhile."""
    database = unmigrated
    stop, written_lines = threading.Event(), []
    with ThreadPoolExecutor() as pool:
        with database.writing(ORPHAN.format(id=new_id(), age="1 minute")):
            writer = pool.submit(write_until, stop, database, written_lines)
            lines: list[str] = []
            migrating = pool.submit(database.migrate, lines.append)
            wait_until(lambda: "create trigger mailglass_open_orphans_add on mailglass_events" in lines)
            before = len(written_lines)
            wait_until(lambda: len(written_lines) > before + 200)
            assert not migrating.done()
        migrating.result(PATIENCE)
        stop.set()
        writer.result(PATIENCE)
    assert database.is_current()


@pytest.mark.guard
@pytest.mark.parametrize("empty_first", [True, False])
def test_remove_takes_out_what_is_ours_and_nothing_else(unmigrated, empty_first):
    """Catalog and rows are as before, and a second removal finds nothing."""
    database = unmigrated
    if not empty_first:
        insert_history(database)
    objects, rows = database.objects(), database.rows()
    database.migrate()
    database.remove()
    assert database.objects() == objects
    assert database.rows() == rows
    assert database.remove()[1:] == ["nothing to do: there is nothing to remove"]


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE mailglass_events DISABLE TRIGGER mailglass_open_orphans_add",
        "ALTER TABLE mailglass_events DISABLE TRIGGER ALL",
        "DROP TRIGGER mailglass_open_orphans_remove ON mailglass_events",
    ],
)
def test_disabled_or_dropped_objects_are_repaired_with_the_orphans_that_were_missed(unmigrated, damage):
    """Orphans that arrived or were reconciled without the triggers are corrected, too."""
    database = unmigrated
    first, *_ = insert_history(database)
    database.migrate()
    complete = lines_of_ours(database.objects())
    database.run(damage)
    assert not database.is_current()
    second = new_id()
    database.run("SET LOCAL session_replication_role = replica;" + ORPHAN.format(id=second, age="1 minute"))
    database.run("SET LOCAL session_replication_role = replica;" + RECONCILED.format(id=first))
    database.migrate()
    assert lines_of_ours(database.objects()) == complete
    assert database.open_set() == {second}


@on_2_x
@pytest.mark.parametrize(
    "damage",
    [
        "DROP INDEX mailglass_deliveries_reconcile_idx",
        "DROP INDEX mailglass_open_orphans_arrival_idx",
        "DROP FUNCTION mailglass_reconcile_link_v1",
        "ALTER FUNCTION mailglass_reconcile_credible_v1 RENAME TO mailglass_reconcile_credible_v0",
    ],
)
def test_a_run_takes_the_steps_of_what_differs_and_no_others(unmigrated, damage):
    """There is no fill either, because it belongs to the triggers and their table."""
    database = unmigrated
    database.migrate()
    complete = lines_of_ours(database.objects())
    database.run(damage)
    assert not database.is_current()
    result = database.migrate()
    assert len(result) == 3, result
    assert complete <= lines_of_ours(database.objects())


@on_2_x
@pytest.mark.parametrize("how", ["ALWAYS", "REPLICA"])
def test_a_trigger_that_fires_always_or_on_a_replica_stays(unmigrated, how):
    """An operator has enabled it in another mode."""
    database = unmigrated
    database.migrate()
    database.run(f"ALTER TABLE mailglass_events ENABLE {how} TRIGGER mailglass_open_orphans_add")
    before = database.objects()
    assert database.migrate()[-1].startswith("nothing to do")
    assert database.objects() == before


@on_2_x
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DROP TABLE mailglass_open_orphans", "table mailglass_open_orphans is missing"),
        ("DELETE FROM mailglass_reconcile_version", "the database has no revision"),
        ("DROP TABLE mailglass_reconcile_version", "the database has no revision"),
    ],
)
def test_a_lost_table_or_revision_is_named_and_the_remedy_restores_it(unmigrated, damage, named):
    """Revisions run once, so `migrate` cannot make a single table again."""
    database = unmigrated
    still_open, *_ = insert_history(database)
    database.migrate()
    complete = database.objects()
    database.run(damage)
    assert not database.is_current()
    before = database.objects()
    with pytest.raises(SchemaOutdatedError, match=named) as refused:
        database.migrate()
    assert "run `mailglass-reconcile migrate --remove`, then `mailglass-reconcile migrate`" in str(refused.value)
    assert database.objects() == before
    database.remove()
    database.migrate()
    assert database.objects() == complete
    assert database.open_set() == {still_open}


@pytest.mark.guard
def test_an_interrupted_fill_is_completed_by_the_next_run(unmigrated):
    """The trigger exists already, so nothing else differs."""
    database = unmigrated
    database.migrate()
    database.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    missed = new_id()
    database.run(ORPHAN.format(id=missed, age="1 minute"))

    def interrupt(line):
        if line.startswith("fill"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.migrate(interrupt)
    assert not database.is_current()
    database.migrate()
    assert database.open_set() == {missed}
    assert database.is_current()


@on_2_x
def test_a_key_of_ours_with_other_columns_is_named_with_the_statement_that_cures_it(unmigrated):
    """`migrate` would fail to drop its index, and `--check` says to run `migrate`."""
    database = unmigrated
    database.migrate()
    key = "mailglass_open_orphan_ids_pkey"
    database.run(f"ALTER TABLE mailglass_open_orphan_ids DROP CONSTRAINT {key}, ADD PRIMARY KEY (position, event_id)")
    [line] = runner.find_missing_objects(database.engine, database.settings)
    assert line.startswith(f"index {key} is not unique, or has other columns, so nothing can be recorded or linked: ")
    with pytest.raises(SchemaOutdatedError, match=f"nothing was changed.* index {key} is not unique"):
        database.migrate()
    database.run(line.rpartition(": ")[2])
    assert database.is_current()


@on_2_x
def test_a_migration_opens_one_connection(unmigrated):
    """It has the lock of migrations, and works for Alembic, too."""
    database = unmigrated
    opened = []
    engine = create_engine(database.settings)
    sa.event.listen(engine, "connect", lambda *_: opened.append(1))
    for _ in range(2):
        opened.clear()
        runner.migrate(engine, database.settings, lambda line: None)
        assert len(opened) == 1


def test_a_dropped_guard_of_tables_that_migrate_made_is_restored(empty_database_url):
    database = installation(empty_database_url)
    database.migrate()
    complete = database.objects()
    database.run("DROP TRIGGER mailglass_events_no_truncate ON mailglass_events")
    assert not database.is_current()
    database.migrate()
    assert database.objects() == complete


@pytest.mark.parametrize("schema", ["mail", "Mail_Glass"])
def test_a_schema_other_than_public_works(empty_database_url, redis_url, schema):
    """Migration, triggers, sweep and removal work, also if the name needs quotes."""
    database = live(empty_database_url, schema)
    before = database.objects()
    insert_history(database)
    database.migrate()
    database.run(ORPHAN.format(id=new_id(), age="5 minutes"))
    assert sweep(database, redis_url) == 2
    assert database.open_set() == set()
    assert "mailglass_reconcile_version" not in str(installation(empty_database_url).objects())
    database.remove()
    assert database.objects() == before


def test_two_schemas_of_one_database_do_not_interfere(empty_database_url, redis_url):
    """Each has its own open set and version."""
    first, two = live(empty_database_url, "one"), live(empty_database_url, "two")
    first.migrate()
    assert not two.is_current()
    two.migrate()
    for database in (first, two):
        database.run(DELIVERY)
    first.run(ORPHAN.format(id=new_id(), age="5 minutes"))
    assert two.open_set() == set()
    assert sweep(two, redis_url) == 0
    assert sweep(first, redis_url) == 1
    before = two.objects()
    first.remove()
    assert two.objects() == before
    assert two.is_current()


def test_a_schema_that_does_not_exist_is_an_error_that_names_the_setting(empty_database_url):
    """A mistyped name does not make a second, empty Mailglass."""
    with pytest.raises(ConfigurationError, match="MAILGLASS_DATABASE_SCHEMA: there is no schema mail "):
        installation(empty_database_url, "mail").migrate()


@pytest.mark.guard
@pytest.mark.parametrize("state", ["empty", "unmigrated", "outdated", "no such schema"])
def test_a_sweep_of_a_database_that_is_not_migrated_says_what_to_run(empty_database_url, redis_url, state):
    """The message is one line."""
    database = installation(empty_database_url, "mail" if state == "no such schema" else "public")
    if state not in {"empty", "no such schema"}:
        live(empty_database_url)
    if state == "outdated":
        database.migrate()
        database.run("UPDATE mailglass_reconcile_version SET version_num = '0000'")
    with pytest.raises(SchemaOutdatedError) as error:
        sweep(database, redis_url)
    remove = "run `mailglass-reconcile migrate --remove`, and then "
    assert str(error.value).partition("(")[0].strip().endswith("`mailglass-reconcile migrate`")
    assert (remove in str(error.value)) == (state == "outdated")
    assert "\n" not in str(error.value)


def test_a_database_of_a_newer_version_is_left_alone(unmigrated):
    """It is neither migrated back nor removed; a container of the old version may start during an update."""
    database = unmigrated
    database.migrate()
    database.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=NEXT)
    database.run("DROP FUNCTION mailglass_reconcile_link_v1")  # which the newer one does not need
    before = database.objects()
    warning = f"warning: nothing was changed, because the database is at revision {NEXT}"
    assert database.migrate()[-1].startswith(warning)
    assert database.is_current()
    with pytest.raises(DatabaseRefusedError, match=f"revision {NEXT}"):
        database.remove()
    assert database.objects() == before


@pytest.mark.skipif(servers.pgbouncer_path() is None, reason="pgbouncer is not installed")
def test_through_pgbouncer_nothing_is_changed_and_no_setting_stays_behind(empty_database_url):
    """Another client gets the same server connection; Django migrates through it if there is nothing to do."""
    direct = installation(empty_database_url)
    with servers.pgbouncer(empty_database_url, 1) as url:
        pooled = installation(url)
        with pytest.raises(DatabaseRefusedError, match="needs a direct connection"):
            pooled.migrate()
        assert lines_of_ours(direct.objects()) == set()
        direct.migrate()
        assert pooled.migrate()[-1].startswith("nothing to do")
        with psycopg.connect(url_of(pooled), autocommit=True, prepare_threshold=None) as client:
            assert client.execute("SHOW search_path").fetchone() == ('"$user", public',)
        with pytest.raises(DatabaseRefusedError, match="needs a direct connection"):
            pooled.remove()
    assert direct.is_current()


def test_a_read_only_server_is_refused_with_one_line(unmigrated):
    """A replica; the line says where to go."""
    database = unmigrated
    before = database.objects()
    database.run("SET LOCAL search_path = pg_catalog; DO $$ BEGIN EXECUTE format("
                 "'ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$")  # fmt: skip
    database.engine.dispose()
    with pytest.raises(DatabaseRefusedError, match=r"^the server is read-only.*to the primary$"):
        database.migrate()
    assert database.objects() == before


@pytest.mark.parametrize("version", nightly_unless("9999".__eq__, ["9999", "1000", "0002a"]))
def test_a_revision_that_this_version_cannot_know_is_refused_by_every_way(unmigrated, version):
    """It is planted, of another major version, or of a checkout."""
    database = unmigrated
    database.migrate()
    database.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=version)
    before = database.objects()
    places = {"MAILGLASS_DATABASE_URL": database.settings.database_url.get_secret_value(),
              "MAILGLASS_DATABASE_SCHEMA": database.settings.database_schema}  # fmt: skip
    for arguments in (["upgrade", "head"], *([["downgrade", "base"]] if version.isdigit() else [])):
        result = processes.run(["-m", "alembic", *arguments], {**os.environ, **places})
        assert result.returncode != 0
        [line] = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
        assert f"the database is at revision {version}" in line
    with pytest.raises(DatabaseRefusedError, match=f"^the database is at revision {version}"):
        database.migrate()
    assert database.objects() == before


def test_a_database_of_an_earlier_checkout_is_refused_with_one_line_that_says_what_to_run(unmigrated):
    """Its only revision had another id; the command in the line works."""
    database = unmigrated
    database.migrate()
    database.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=UNRELEASED)
    database.run("ALTER TABLE mailglass_open_orphans DROP COLUMN state")
    refusal = rf"^the database is at revision {UNRELEASED} of an .*--remove.*changed$"
    with pytest.raises(DatabaseRefusedError, match=refusal):
        database.migrate()
    database.remove()
    assert lines_of_ours(database.objects()) == set()
    database.migrate()
    assert database.is_current()


def test_mailglass_can_roll_back_its_own_migrations(unmigrated):
    """None of our objects depends on its tables or functions, and ours can still be removed or made again."""
    database = unmigrated
    insert_history(database)
    database.migrate()
    roll_back(database)
    database.remove()
    assert lines_of_ours(database.objects()) == set()


def test_tables_that_mailglass_makes_again_are_used_by_the_next_migration(unmigrated, empty_database_url, shape):
    """The triggers are made again, and orphans of the old ledger leave the open set."""
    database = unmigrated
    insert_history(database)
    database.migrate()
    roll_back(database)
    make_mailglass_tables(empty_database_url, shape)
    database.migrate()
    assert database.is_current()
    assert database.open_set() == set()


FORBIDDEN = ["UPDATE mailglass_events SET type = 'x'", "DELETE FROM mailglass_events"]


@pytest.mark.guard
def test_the_ledger_refuses_to_be_changed(unmigrated):
    """Python gets the refusal of UPDATE and DELETE by name."""
    database = unmigrated
    still_open, *_ = insert_history(database)
    database.migrate()
    for forbidden in FORBIDDEN:
        with pytest.raises(LedgerImmutableError), database.engine.begin() as connection:
            connection.execute(sa.text(forbidden))
    assert database.open_set() == {still_open}
