"""What a revision after the first may do: it changes a table of ours, or fills rows in batches."""

import importlib.util

import pytest
import sqlalchemy as sa
from alembic import op

from mailglass_reconcile.store.migration.operations import execute, schema_name
from mailglass_reconcile.store.schema import script
from revisions import RECIPE, find_faults, render

pytestmark = pytest.mark.version_independent


def add_column(table="mailglass_open_orphans"):
    op.add_column(table, sa.Column("region", sa.Text()), schema=schema_name())


def test_later_revisions_keep_the_rules():
    """Of the first one nothing is asked: it makes all tables."""
    for path in sorted((script.find_folder() / "versions").glob("*.py"))[1:]:
        specification = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        assert list(find_faults(render(module.upgrade))) == [], path.name


def test_a_column_and_the_recipe_for_rows_pass_as_two_revisions():
    """Together they would keep every writer waiting for the lock of the column."""
    recipe = {"op": op, "execute": execute}
    exec(RECIPE, recipe)  # noqa: S102
    assert list(find_faults(render(add_column))) == []
    statements = render(recipe["upgrade"])
    assert "UPDATE" in statements
    assert list(find_faults(statements)) == []

    def both():
        add_column()
        recipe["upgrade"]()

    [sentence] = find_faults(render(both))
    assert sentence.startswith("it changes a table and rows")


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE {schema}.mailglass_open_orphans ADD region text; "
        "update {schema}.mailglass_open_orphans SET region = 'eu'",
        "DROP INDEX {schema}.mailglass_open_orphans_arrival_idx; DELETE FROM {schema}.mailglass_open_orphan_ids",
    ],
)
def test_a_lock_and_rows_in_one_revision_are_refused(sql):
    [sentence] = find_faults(render(lambda: execute(sql)))
    assert sentence.endswith("make two revisions of it")


@pytest.mark.parametrize("table", ["mailglass_deliveries", "mailglass_events", "mailglass_webhook_events"])
@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE ONLY {schema}.NAME ADD region text",
        "UPDATE {schema}.NAME SET metadata = '{}'",
        "CREATE INDEX one ON {schema}.NAME (region)",
        "INSERT INTO {schema}.NAME DEFAULT VALUES",
        "DELETE FROM ONLY {schema}.NAME",
    ],
)
def test_a_change_of_a_table_of_mailglass_s_is_refused(sql, table):
    """Reading it is allowed, as is a table of ours with a longer name."""
    [sentence] = find_faults(render(lambda: execute(sql.replace("NAME", table))))
    assert sentence.startswith(f"it changes {table}:")
    [sentence] = find_faults(render(lambda: add_column(table)))
    assert sentence.startswith(f"it changes {table}:")
    fill = "UPDATE {schema}.mailglass_open_orphans SET region = '' FROM {schema}.NAME JOIN NAME AS t ON NAME.id = t.id"
    assert list(find_faults(render(lambda: execute(fill.replace("NAME", table))))) == []
    assert list(find_faults(render(lambda: add_column(f"{table}_ours")))) == []
