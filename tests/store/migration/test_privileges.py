"""A role that may create objects in the schema, or take a lock, gains no power over the migrating role."""

import subprocess
from collections.abc import Iterator
from itertools import cycle

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

import commands
import mailglass_reconcile
from catalog import Installation, client, installation, live, url_of
from factories import delivery, orphan, postmark
from history import DELIVERY
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.migration.session import open_session
from mailglass_reconcile.store.schema import revision
from marking import nightly_unless, slow_unless
from roles import temporary_role

pytestmark = pytest.mark.slow


SQUATS = {
    "view mailglass_reconcile_version": """
        CREATE FUNCTION evil() RETURNS text LANGUAGE plpgsql AS
          $$ BEGIN EXECUTE 'CREATE TABLE public.taken_over ()'; RETURN '0001'; END $$;
        CREATE VIEW mailglass_reconcile_version AS SELECT public.evil() AS version_num""",
    "table mailglass_reconcile_version": "CREATE TABLE mailglass_reconcile_version (version_num text)",
    "table mailglass_open_orphans": """
        CREATE TABLE mailglass_open_orphans (event_id uuid PRIMARY KEY, tenant_id text, arrived_at timestamp,
                                             provider text, candidate_ids text[], recipient text)""",
    "index mailglass_open_orphans_arrival_idx": """
        CREATE TABLE theirs (a int); CREATE INDEX mailglass_open_orphans_arrival_idx ON theirs (a)""",
    "index mailglass_webhook_events_prune_idx": """
        CREATE TABLE theirs (a int); CREATE INDEX mailglass_webhook_events_prune_idx ON theirs (a)""",
    "function mailglass_events_no_truncate": """
        CREATE FUNCTION mailglass_events_no_truncate() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN RETURN NULL; END $$""",
    "function mailglass_open_orphans_add": """
        CREATE FUNCTION mailglass_open_orphans_add() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN EXECUTE 'CREATE TABLE public.taken_over ()'; RETURN NULL; END $$""",
}


@pytest.fixture
def squatter(admin: sa.Engine, empty_database_url: str) -> Iterator[str]:
    """A role that may create in the schema `public`, like any role up to PostgreSQL 14."""
    database = installation(empty_database_url)
    with temporary_role(admin, "LOGIN", database) as name:
        database.run(f"GRANT CREATE ON SCHEMA public TO {name}")
        yield name


@pytest.mark.parametrize(("object_name", "mailglass"), [*zip(SQUATS, cycle(["0.1.1", "2.x", None]))])
def test_a_name_of_ours_that_another_role_took_is_refused_with_object_and_owner(
    empty_database_url, squatter, object_name, mailglass
):
    """Neither migrating nor removing runs the squatter's code or changes anything."""
    database = live(empty_database_url, "public", mailglass) if mailglass else installation(empty_database_url)
    database.run(f"SET ROLE {squatter}; {SQUATS[object_name]}")
    before = database.objects()
    for work in (database.migrate, database.remove):
        with pytest.raises(DatabaseRefusedError) as refused:
            work()
        assert f"{object_name} belongs to role {squatter}" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not database.is_current()
    assert database.objects() == before


def test_a_role_that_owns_nothing_is_told_what_it_lacks_and_changes_nothing(empty_database_url, squatter):
    """On an empty database it may not create; on a migrated one, the error names the owner."""
    database = installation(empty_database_url)
    url = database.engine.url.set(username=squatter, drivername="postgresql").render_as_string(hide_password=False)
    stranger = installation(url)
    database.run(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; REVOKE CREATE ON SCHEMA public FROM {squatter}")
    with pytest.raises(DatabaseRefusedError, match=f"nothing was .*: run GRANT CREATE ON SCHEMA public TO {squatter}$"):
        stranger.migrate()
    assert not any("mailglass" in line for line in database.objects())
    database.migrate()
    with pytest.raises(DatabaseRefusedError, match=f"for role {squatter} on mailglass_reconcile_version"):
        stranger.migrate()
    database.run(f"GRANT SELECT ON mailglass_reconcile_version TO {squatter}")
    assert stranger.migrate()[-1].endswith(", owned by postgres")
    database.run("DROP INDEX mailglass_open_orphans_arrival_idx")
    before = database.objects()
    with pytest.raises(DatabaseRefusedError, match="table mailglass_open_orphans belongs to role postgres"):
        stranger.migrate()
    assert database.objects() == before


def test_an_owner_that_may_not_create_in_the_schema_gets_the_grant_before_anything_is_changed(
    empty_database_url, squatter
):
    """A revision that alters its tables would be committed, and then every new process would lack a function."""
    database = installation(empty_database_url)
    owned = installation(database.engine.url.set(username=squatter).render_as_string(hide_password=False))
    owned.migrate()
    database.run(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; REVOKE CREATE ON SCHEMA public FROM {squatter}")
    assert owned.migrate()[-1].startswith("nothing to do")
    database.run("DROP FUNCTION mailglass_reconcile_link_v1")
    before = database.objects()
    with pytest.raises(DatabaseRefusedError, match=f"nothing was .*: run GRANT CREATE ON SCHEMA public TO {squatter}$"):
        owned.migrate()
    assert database.objects() == before
    assert "mailglass_reconcile_link_v1" in "".join(owned.migrate(plan=True))


def test_a_trigger_of_another_role_s_function_is_refused(empty_database_url, shape, squatter):
    """The trigger has our name, on the ledger."""
    database = live(empty_database_url, "public", shape)
    database.run(f"""
        GRANT TRIGGER ON mailglass_events TO {squatter}; SET ROLE {squatter};
        CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER mailglass_open_orphans_add AFTER INSERT ON mailglass_events EXECUTE FUNCTION theirs()""")
    with pytest.raises(DatabaseRefusedError, match=f"trigger mailglass_open_orphans_add belongs to role {squatter}"):
        database.migrate()


def test_a_planted_revision_of_a_newer_version_does_not_pass_for_a_migration(empty_database_url, squatter):
    """Nothing would be made, and the command would exit with 0."""
    database = installation(empty_database_url)
    database.run(f"SET ROLE {squatter}; CREATE TABLE mailglass_reconcile_version (version_num text PRIMARY KEY)")
    database.run("INSERT INTO mailglass_reconcile_version VALUES ('9999')")
    with pytest.raises(DatabaseRefusedError, match=f"table mailglass_reconcile_version belongs to role {squatter}"):
        database.migrate()


@pytest.mark.guard
def test_an_existing_table_of_ours_without_a_revision_is_kept(unmigrated):
    """Nobody knows which revision it is of, so `migrate` refuses, and keeps its rows."""
    database = unmigrated
    database.migrate()
    database.run("DELETE FROM mailglass_reconcile_version")
    before = database.objects()
    with pytest.raises(mailglass_reconcile.SchemaOutdatedError, match="the database has no revision: restore"):
        database.migrate()
    assert database.objects() == before
    database.run("INSERT INTO mailglass_reconcile_version VALUES (:version)", version=revision.VERSION)
    assert database.is_current()


def test_the_holder_of_the_migration_lock_is_named(empty_database_url, shape, squatter):
    """Any role may take it: one line has process, role and application."""
    database: Installation = live(empty_database_url, "public", shape)
    url = database.engine.url.set(username=squatter).update_query_dict({"application_name": "a joker"})
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as holder:
        holder.exec_driver_sql("SELECT pg_advisory_lock(hashtext('mailglass_reconcile migrate'))")
        pid = holder.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with (
            pytest.raises(DatabaseRefusedError) as refused,
            open_session(database.engine, database.settings, print, wait_seconds=0),
        ):
            pass
    assert f"process {pid} of role '{squatter}', application 'a joker', holds the lock" in str(refused.value)
    database.migrate()


def test_an_overload_of_a_function_of_ours_is_not_taken_for_it(db, admin):
    """The role would have lacked its EXECUTE for ever: the GRANT is on ours."""
    db.run("CREATE FUNCTION mailglass_reconcile_close_v1(text) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    db.run("REVOKE ALL ON FUNCTION mailglass_reconcile_close_v1(text) FROM PUBLIC")
    with temporary_role(admin, "", db) as role:
        db.run(f"GRANT EXECUTE ON FUNCTION mailglass_reconcile_close_v1(uuid[], boolean[]) TO {role}")
        with Database(db.engine, db.settings).reading_catalog() as tx:
            oid = tx.execute("SELECT oid FROM pg_roles WHERE rolname = :role", {"role": role}).scalar_one()
            compared = privileges.ComparedRole(oid, role, "mailglass_recorder", role, is_current=False)
            [missing] = privileges.find_missing(tx, [compared])
    assert [phrase for phrase in missing.privileges if phrase.startswith("EXECUTE")] == []
    db.run("DROP FUNCTION mailglass_reconcile_close_v1(text)")


@pytest.fixture
def sweeper(db, admin) -> Iterator[str]:
    """The URL of a role that has every grant, and no BYPASSRLS."""
    with temporary_role(admin, "LOGIN", db) as role:
        db.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        db.run(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
        yield db.engine.url.set(username=role, drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.parametrize("command", ["sweep", "prune"])
@pytest.mark.parametrize(
    "table",
    nightly_unless("mailglass_events".__eq__, ["mailglass_events", "mailglass_deliveries", "mailglass_open_orphans"]),
)
def test_a_policy_that_would_hide_rows_fails_the_command_with_one_line_and_changes_nothing(
    db, sweeper, redis_url, command, table
):
    """Hidden rows would look missing, and the prune would close open orphans."""
    delivery(db, "m-1")
    orphan(db, postmark("m-1"))
    db.run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    db.run(f"CREATE POLICY hiding ON {table} USING (tenant_id = 'nobody')")
    result = commands.run_forked(db, command, "--json", MAILGLASS_DATABASE_URL=sweeper)
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if "42501" in line]
    assert "row level security" in line
    assert "Traceback" not in result.stderr
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 1
    assert db.count_links() == 0


TRAP = "LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'CREATE TABLE public.taken_over ()'; RETURN NULL; END $$"
TRAPS = {
    "a function for a smallint": f"CREATE FUNCTION public.make_interval(mins smallint) RETURNS interval {TRAP}",
    "a function for an integer": f"CREATE FUNCTION public.make_interval(mins integer) RETURNS interval {TRAP}",
    "an operator": f"""
        CREATE FUNCTION public.joined(text, uuid) RETURNS text {TRAP};
        CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = uuid, FUNCTION = public.joined)""",
}


@pytest.mark.guard
@pytest.mark.parametrize("trap", slow_unless([*TRAPS][:1].__contains__, TRAPS))
def test_functions_that_overload_postgres_s_own_are_not_called(db, trap):
    """A role that may create in the schema would get the privileges of whoever sweeps, prunes or looks."""
    delivery(db, "m-1")
    orphan(db, postmark("m-1"))
    db.run(TRAPS[trap])
    with db.engine.begin() as connection:
        assert len(mailglass_reconcile.find_orphans(connection)) == 1
    assert mailglass_reconcile.reconcile().linked == 1
    assert mailglass_reconcile.prune().settled == 0
    db.run("DROP FUNCTION IF EXISTS public.make_interval, public.joined CASCADE")  # for the checker's own calls
    assert db.value("SELECT to_regclass('public.taken_over')") is None


ON_THE_PATH = {
    "an operator for Alembic's look for its table": """
        CREATE FUNCTION public.same(name, varchar) RETURNS boolean LANGUAGE plpgsql AS
          $$ BEGIN EXECUTE 'CREATE TABLE public.taken_over ()'; RETURN $1 = $2::name; END $$;
        CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = varchar, FUNCTION = public.same)""",
    "a function for the index on deliveries": """
        CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
          $$ BEGIN EXECUTE 'CREATE TABLE public.taken_over ()'; RETURN 1; END $$""",
}


@pytest.mark.parametrize("trap", ON_THE_PATH)
@pytest.mark.parametrize(("schema", "shape"), [("public", "0.1.1"), ("mailglass", "2.x")])
def test_migrating_runs_nobody_else_s_code(empty_database_url, trap, schema, shape):
    """Code may be in the tables' schema or in another one of the role's search_path; removing and planning are tried
    too.
    """
    database = live(empty_database_url, schema, shape)
    database.run(DELIVERY)
    database.run(ON_THE_PATH[trap])
    script = "\n".join(database.migrate(plan=True))
    subprocess.run(
        [client("psql", database), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", url_of(database)],
        input=script, text=True, check=True, capture_output=True,
    )  # fmt: skip
    assert database.is_current()
    database.remove()
    database.migrate()
    assert database.is_current()
    assert database.values("SELECT to_regclass('public.taken_over')") == [None]


def prune_and_raise() -> None:
    """Prune, and raise the error for which the open set was not repaired."""
    raise DatabaseRefusedError(mailglass_reconcile.prune().failures["settled"])


@pytest.mark.parametrize("work", [mailglass_reconcile.reconcile, prune_and_raise])
def test_hidden_rows_are_never_taken_for_missing_ones(db, sweeper, work):
    """Python gets the refusal by name, and nothing is closed."""
    orphan(db, postmark("m-1"))
    db.run("ALTER TABLE mailglass_open_orphans ENABLE ROW LEVEL SECURITY")
    db.run("CREATE POLICY hiding ON mailglass_open_orphans USING (false)")
    settings = db.settings.model_copy(update={"database_url": SecretStr(sweeper)})
    mailglass_reconcile.configure(engine=create_engine(settings), settings=settings)
    with pytest.raises(DatabaseRefusedError, match="row level security"):
        work()
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 1
