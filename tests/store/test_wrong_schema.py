"""A database that Mailglass made, or that has another ledger in another schema."""

import pytest
import sqlalchemy as sa

from catalog import installation, live
from history import insert_history
from mailglass_reconcile.errors import ConfigurationError, LedgerImmutableError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import location
from mailglass_reconcile.store.location import SchemaTables
from mailglass_reconcile.store.migration import runner
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
    schemas = [SchemaTables("shop", True, is_mailglass_s, False), SchemaTables("old", False, False, True)]
    assert (location.find_relocation(schemas, "shop") is not None) == is_mailglass_s
