"""`migrate --remove` says what is lost before it asks, and keeps foreign objects."""

import csv
import os
import re
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import processes
from catalog import client, installation, lines_of_ours, live, url_of
from history import insert_history
from mailglass_reconcile.errors import DatabaseRefusedError, LedgerImmutableError
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import revision
from processes import COMMAND
from roles import temporary_role
from shapes import SCHEMAS

pytestmark = pytest.mark.slow


def test_a_removal_prints_what_is_pending_lost_and_left(empty_database_url):
    """Tables that `migrate` made stay with their recipients, and the command that drops them is printed."""
    database = installation(empty_database_url)
    database.migrate()
    insert_history(database)
    database.run("UPDATE mailglass_open_orphans SET recipient = 'ada@example.com'")
    database.run("""
        INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)
        VALUES (gen_random_uuid(), 'audit', gen_random_uuid(), 'opened', now(), now())""")
    pending, lost, stays = runner.describe_removal(database.engine, database.settings)
    open_now = len(database.open_set())
    assert pending.startswith(f"will stay unlinked: {open_now} open event")
    assert "waiting jobs of handlers: 1" in pending
    assert f"recipients of {open_now} open event" in lost
    assert "recipients included" in stays
    database.remove()
    assert database.values("SELECT count(*) FROM mailglass_deliveries") == [1]
    assert stays.endswith("`mailglass-reconcile migrate --remove --tables`")


def test_a_removal_leaves_nothing_of_ours_on_the_tables_that_migrate_made(empty_database_url):
    """The indexes that stay are Mailglass's; the next migration makes ours again."""
    database = installation(empty_database_url)
    database.migrate()
    insert_history(database)
    rows = database.rows()
    assert any("deliveries_tenant_inserted_idx" in line for line in lines_of_ours(database.objects()))
    database.remove()
    assert lines_of_ours(database.objects()) == set()
    assert database.rows() == rows
    assert database.remove()[1:] == ["nothing to do: there is nothing to remove"]
    database.migrate()
    assert database.is_current()


@pytest.mark.parametrize("first", [False, True])
def test_the_tables_that_migrate_made_are_dropped_with_every_row(empty_database_url, first):
    """They go together with ours, or after ours, completely, and can be made again."""
    database = installation(empty_database_url)
    before = database.objects()
    database.migrate()
    insert_history(database)
    if first:
        database.remove()
    assert runner.describe_removal(database.engine, database.settings, tables=True)[-1].startswith("dropped for good: ")
    database.remove(tables=True)
    assert database.objects() == before
    database.migrate()
    assert database.is_current()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "dropped", [[name] for name in sorted(revision.MAILGLASS_TABLES)] + [["mailglass_deliveries", "mailglass_events"]]
)
def test_what_remains_of_the_tables_that_migrate_made_is_dropped(empty_database_url, dropped, first):
    """Somebody has dropped a part of them manually, before our objects or after them."""
    database = installation(empty_database_url)
    before = database.objects()
    database.migrate()
    if first:
        database.remove()
    for name in dropped:
        database.run(f"DROP TABLE {name} CASCADE")
    (line,) = runner.describe_removal(database.engine, database.settings, tables=True)[2:]
    remaining = [f'"public".{name}' for name in sorted(revision.MAILGLASS_TABLES) if name not in dropped]
    assert line == f"dropped for good: {', '.join(remaining)}, with every row"
    database.remove(tables=True)
    assert database.objects() == before
    assert database.remove(tables=True)[1:] == ["nothing to do: there is nothing to remove"]


def test_a_check_without_the_ledger_is_one_sentence(empty_database_url):
    """`migrate` says the same."""
    database = installation(empty_database_url)
    database.migrate()
    database.run("DROP TABLE mailglass_events, mailglass_deliveries, mailglass_webhook_events CASCADE")
    (line,) = runner.find_missing_objects(database.engine, database.settings)
    assert line == installed.WITHOUT_LEDGER
    with pytest.raises(DatabaseRefusedError, match=re.escape(line)):
        database.migrate()


@pytest.mark.parametrize("shape", ["0.1.1", "2.x"])
def test_mailglass_s_own_tables_are_never_dropped(empty_database_url, shape):
    """Nothing is changed, and nobody is asked."""
    database = live(empty_database_url, "mailglass", shape)
    database.migrate()
    before = database.objects()
    with pytest.raises(DatabaseRefusedError, match="nothing was changed: `migrate` did not make the tables"):
        runner.describe_removal(database.engine, database.settings, tables=True)
    with pytest.raises(DatabaseRefusedError, match="nothing was changed"):
        database.remove(tables=True)
    assert database.objects() == before


def test_what_an_application_has_built_on_the_tables_stops_their_removal(empty_database_url):
    """A view is an example; once it is dropped, the same command does the rest."""
    database = installation(empty_database_url)
    database.migrate()
    database.run("CREATE VIEW mine AS SELECT id FROM mailglass_deliveries")
    with pytest.raises(DatabaseRefusedError, match="another object depends on one of these"):
        database.remove(tables=True)
    database.run("DROP VIEW mine")
    database.remove(tables=True)
    assert not any("mailglass" in line for line in database.objects())


def test_tables_that_are_kept_get_their_retention_again(empty_database_url):
    """Removing our objects drops the functions, and migrating makes them again."""
    database = installation(empty_database_url)
    database.migrate()
    functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'mailglass_reconcile_prune_%'"
    assert database.values(functions) == [2]
    database.remove()
    assert database.values(functions) == [0]
    database.migrate()
    assert database.values(functions) == [2]
    database.run("DROP FUNCTION mailglass_reconcile_prune_events_v1")
    assert not database.is_current()


def test_the_export_of_the_documentation_has_every_row(empty_database_url, tmp_path):
    """psql exports them as documented, and they are read back into the same tables elsewhere."""
    database = installation(empty_database_url)
    database.migrate()
    insert_history(database)
    page = (Path(__file__).parents[3] / "docs" / "upgrading.md").read_text()
    commands = re.findall(r'^ *\$ psql "postgresql:.*" -c "(.*)"$', page, re.M)
    assert len(commands) == 2
    for command in commands:
        psql = [client("psql", database), "--no-psqlrc", url_of(database), "-c", command]
        subprocess.run(psql, cwd=tmp_path, check=True, capture_output=True)
    for name in ("deliveries", "events"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(database.rows()[f"mailglass_{name}"]) > 0


def test_events_can_be_changed_after_the_statement_of_the_documentation(empty_database_url):
    """Before it, they cannot: removing our objects leaves the ledger append-only."""
    database = installation(empty_database_url)
    database.migrate()
    insert_history(database)
    database.remove()
    page = (Path(__file__).parents[3] / "docs" / "upgrading.md").read_text()
    (block,) = [block for block in re.findall(r"```sql\n(.*?)```", page, re.S) if "DROP TRIGGER" in block]
    change = sa.text("UPDATE mailglass_events SET type = 'unknown'")
    with pytest.raises(LedgerImmutableError), database.engine.begin() as connection:
        connection.execute(change)
    with database.engine.begin() as connection:
        connection.execute(sa.text(block))
        assert connection.execute(change).rowcount


def test_mailglass_s_own_tables_are_not_offered_for_dropping(empty_database_url):
    """The output does not mention it."""
    database = live(empty_database_url, "mailglass", "2.x")
    database.migrate()
    assert not any("DROP" in line for line in runner.describe_removal(database.engine, database.settings))


def test_the_command_asks_before_it_removes(unmigrated, shape, empty_database_url):
    """Without a terminal it requires --yes; the output says what is lost."""
    database = unmigrated
    database.migrate()
    place = {"MAILGLASS_DATABASE_URL": empty_database_url, "MAILGLASS_DATABASE_SCHEMA": SCHEMAS[shape]}
    environment = {**os.environ, **place}
    command = [*COMMAND, "migrate", "--remove"]
    refused = processes.run(command, environment)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2,
        "mailglass-reconcile: no terminal to confirm on: nothing was removed; pass --yes to remove it",
    )
    assert database.is_current()
    result = processes.run([*command, "--yes"], environment)
    assert "will stay unlinked: 0 open events" in result.stdout
    assert result.stdout.startswith(refused.stdout), "a preview needs no terminal"
    wrong = processes.run([*COMMAND, "migrate", "--tables"], environment)
    assert (wrong.returncode, "--tables can only be used with --remove" in wrong.stderr) == (2, True)
    assert not database.is_current()


def test_a_table_that_only_has_a_name_of_ours_is_never_dropped(unmigrated, shape):
    """It lacks our columns, and nothing is built on it either."""
    database = unmigrated
    database.run(
        "CREATE TABLE mailglass_handler_outbox (note text); INSERT INTO mailglass_handler_outbox VALUES ('mine')"
    )
    before = database.objects()
    for work in (database.migrate, database.remove):
        with pytest.raises(DatabaseRefusedError, match="mailglass_handler_outbox is not ours"):
            work()
    assert database.objects() == before


def test_another_role_gets_the_owner_of_a_migrated_database(empty_database_url, shape, admin):
    """A deployment migrates as one role, and an operator as another."""
    second_role, name = installation(empty_database_url), make_url(empty_database_url).database
    with temporary_role(admin, "LOGIN", second_role) as role:
        second_role.run(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}; GRANT CREATE ON DATABASE {name} TO {role}")
        url = make_url(empty_database_url).set(username=role).render_as_string(hide_password=False)
        owned = live(url, "public", shape)
        owned.migrate()
        before = second_role.objects()
        expected = f"nothing to do: the database is at revision {revision.VERSION}, owned by {role}"
        assert second_role.migrate()[-1] == expected
        assert second_role.objects() == before
