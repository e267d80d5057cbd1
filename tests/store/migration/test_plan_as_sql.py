"""The plan is a script for psql, and Alembic's own command works in a checkout."""

import os
import uuid
from pathlib import Path

import pytest

import processes
from catalog import Installation, client, installation, live, url_of
from history import insert_history
from mailglass_reconcile.store.schema import revision
from processes import COMMAND

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def run(*command: str, url: str = "", script: str | None = None, **environment: str) -> str:
    """Run a program in the checkout, and return its output; it must succeed."""
    places = {"MAILGLASS_DATABASE_URL": url, **environment}
    result = processes.run(command, {**os.environ, **places}, stdin=script, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def url(database: Installation) -> str:
    """Return the URL in the form of the environment."""
    return database.settings.database_url.get_secret_value()


@pytest.mark.parametrize("mailglass", [True, False])
@pytest.mark.parametrize(("name", "shape"), [("public", "0.1.1"), ("Mail_Glass", "2.x")])
def test_a_plan_piped_into_psql_does_what_the_migration_does(
    empty_database_url, make_database, drop_database, name, shape, mailglass
):
    """The catalog, the revision and the open orphans agree, and nothing is left to do."""
    second_database = f"mgtest_{uuid.uuid4().hex[:12]}"
    try:
        planned, migrated = live(empty_database_url, name, shape), live(make_database(second_database), name, shape)
        for database in (planned, migrated):
            insert_history(database)
            if not mailglass:
                database.run("DROP TABLE mailglass_events, mailglass_deliveries, mailglass_webhook_events")
                database.run("DROP FUNCTION mailglass_raise_immutability()")
        place = {"MAILGLASS_DATABASE_URL": url(planned), "MAILGLASS_DATABASE_SCHEMA": name}
        script = processes.run([*COMMAND, "migrate", "--plan"], {**os.environ, **place}).stdout
        run(client("psql", planned), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", url_of(planned), script=script)
        migrated.migrate()
        assert planned.objects() == migrated.objects()
        assert len(planned.open_set()) == len(migrated.open_set()) == mailglass
        assert planned.values("SELECT version_num FROM mailglass_reconcile_version") == [revision.VERSION]
        assert planned.is_current()
    finally:
        drop_database(second_database)


def test_a_plan_of_half_a_migration_leaves_out_what_is_done(unmigrated):
    """An interrupted script can be followed by another one."""
    database = unmigrated
    database.migrate()
    complete = database.objects()
    database.run(
        "DROP TRIGGER mailglass_open_orphans_add ON mailglass_events; DROP INDEX mailglass_open_orphans_arrival_idx"
    )
    script = "\n".join(database.migrate(plan=True))
    assert "CREATE TABLE" not in script
    assert script.count("CREATE ") == 2
    run(client("psql", database), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", url_of(database), script=script)
    assert database.objects() == complete
    assert database.is_current()


@pytest.mark.parametrize(("name", "shape"), [("public", "0.1.1"), ("Mail_Glass", "2.x")])
def test_alembic_s_own_command_migrates_tells_the_revision_and_takes_it_back(empty_database_url, name, shape):
    """It runs in a checkout with the environment only."""
    database = live(empty_database_url, name, shape)
    before = database.objects()
    insert_history(database)
    places = {"url": url(database), "MAILGLASS_DATABASE_SCHEMA": name}
    alembic = str(processes.forker().commands / "alembic")
    assert revision.VERSION not in run(alembic, "current", **places)
    run(alembic, "upgrade", "head", **places)
    assert database.is_current()
    assert len(database.open_set()) == 1
    assert f"{revision.VERSION} (head)" in run(alembic, "current", **places)
    run(alembic, "downgrade", "base", **places)
    assert database.objects() == before


def test_alembic_s_own_command_prints_sql_that_psql_takes(empty_database_url):
    database = installation(empty_database_url)
    script = run(str(processes.forker().commands / "alembic"), "upgrade", "head", "--sql", url=url(database))
    run(client("psql", database), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", url_of(database), script=script)
    assert database.is_current()
