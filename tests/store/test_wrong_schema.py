"""A database that Mailglass made, or that has another ledger in another schema."""

import pytest
import sqlalchemy as sa

from catalog import installation, live
from history import insert_history, new_id
from mailglass_reconcile.errors import ConfigurationError, LedgerImmutableError, SchemaOutdatedError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import location
from mailglass_reconcile.store.schema.location import SchemaTables
from shapes import SCHEMAS

pytestmark = pytest.mark.slow

SUPPRESSIONS = "CREATE TABLE mailglass_suppressions (id uuid PRIMARY KEY)"


def test_a_forgotten_schema_does_not_make_a_second_set_of_tables(empty_database_url, monkeypatch):
    """The line names the schema with the ledger and the setting; with the setting, both ways are open."""
    real = live(empty_database_url, "Mail_Glass")
    monkeypatch.delenv("MAILGLASS_DATABASE_SCHEMA", raising=False)
    forgotten = installation(empty_database_url)
    before = forgotten.objects(), real.objects()
    for plan in (True, False):
        with pytest.raises(ConfigurationError) as refused:
            runner.migrate(forgotten.engine, Settings(database_url=empty_database_url), lambda line: None, plan=plan)
        assert "schema public has no mailglass_events, but schema Mail_Glass has" in str(refused.value)
        assert "MAILGLASS_DATABASE_SCHEMA" in str(refused.value)
    assert (forgotten.objects(), real.objects()) == before
    forgotten.migrate()
    real.migrate()
    assert forgotten.is_current()
    assert real.is_current()


@pytest.mark.guard
def test_the_default_schema_needs_no_setting_if_the_ledger_is_there(empty_database_url, monkeypatch):
    live(empty_database_url, "other")
    database = live(empty_database_url)
    monkeypatch.delenv("MAILGLASS_DATABASE_SCHEMA", raising=False)
    runner.migrate(database.engine, Settings(database_url=empty_database_url), lambda line: None)
    assert database.is_current()


def test_mailglass_s_own_tables_can_be_truncated(empty_database_url, shape):
    """Its test suite truncates the ledger."""
    database = live(empty_database_url, SCHEMAS[shape], shape)
    if shape == "0.1.1":
        database.run(SUPPRESSIONS)
    insert_history(database)
    before = database.objects()
    database.migrate()
    assert database.is_current()
    assert not any("no_truncate" in line for line in database.objects())
    assert before <= database.objects()
    database.run("TRUNCATE mailglass_events")
    database.remove()
    assert database.objects() == before


def test_tables_that_we_made_bear_no_comment_of_mailglass_s(empty_database_url):
    """Mailglass stores its version in it, and its migrations would skip half of its tables."""
    database = installation(empty_database_url)
    database.migrate()
    assert database.values("SELECT obj_description('mailglass_events'::regclass)") == [None]
    with pytest.raises(LedgerImmutableError), database.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE mailglass_events"))


@pytest.mark.guard
@pytest.mark.parametrize("is_mailglass_s", [True, False])
def test_only_tables_that_mailglass_made_can_have_moved(is_mailglass_s):
    """Another installation of ours may have lost its ledger, which says nothing of this one."""
    schemas = [
        SchemaTables("shop", True, is_mailglass_s, (), False),
        SchemaTables("old", False, False, ("shop",), True),
    ]
    assert (location.find_relocation(schemas, "shop") is not None) == is_mailglass_s


@pytest.fixture
def stranger(empty_database_url):
    """A role that has tables with our names and Mailglass's in two schemas of its own."""
    database, role = installation(empty_database_url), f"mgtest_{new_id().replace('-', '')[:12]}"
    database.run(f"CREATE ROLE {role}")
    database.run(
        f"""CREATE SCHEMA theirs AUTHORIZATION {role}; CREATE SCHEMA more AUTHORIZATION {role}; SET ROLE {role};
            CREATE TABLE theirs.mailglass_open_orphans (); CREATE TABLE theirs.mailglass_reconcile_version ();
            CREATE TABLE more.mailglass_events (); CREATE TABLE more.mailglass_suppressions (); RESET ROLE"""
    )
    yield role
    database.run(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.parametrize("is_mailglass_s", [True, False])
@pytest.mark.usefixtures("stranger")
def test_a_table_of_a_stranger_in_another_schema_is_no_move(empty_database_url, is_mailglass_s):
    """A first migration, later ones, the check and the doctor take no notice."""
    database = live(empty_database_url) if is_mailglass_s else installation(empty_database_url)
    if is_mailglass_s:
        database.run(SUPPRESSIONS)
    database.migrate()
    assert database.is_current()
    assert database.migrate()[-1].startswith("nothing to do")
    with Database(database.engine, database.settings).reading() as tx:
        assert location.find_relocation(tx.load_schemas(), "public") is None
    database.run("DROP TABLE mailglass_handled_types")
    with pytest.raises(SchemaOutdatedError, match="table mailglass_handled_types is missing"):
        database.migrate()


def test_an_own_table_elsewhere_is_no_move_while_ours_are_complete(empty_database_url):
    """It was forgotten there, or is an empty copy."""
    database = live(empty_database_url)
    database.run(SUPPRESSIONS)
    database.migrate()
    database.run("CREATE SCHEMA copies; CREATE TABLE copies.mailglass_open_orphans ()")
    assert database.is_current()
    assert database.migrate()[-1].startswith("nothing to do")
