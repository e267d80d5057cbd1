"""What a revision after the first may do: it changes a table of ours, or fills rows in batches."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config

import revision_files
from mailglass_reconcile.store.migration.operations import execute, schema_name
from mailglass_reconcile.store.schema import script
from mailglass_reconcile.store.schema.revision import VERSION
from released_steps import find_tables_before, load_releases
from revisions import NEXT, RECIPE, find_faults, render

pytestmark = pytest.mark.version_independent


def add_column(table="mailglass_open_orphans"):
    op.add_column(table, sa.Column("region", sa.Text()), schema=schema_name())


def test_later_revisions_keep_the_rules():
    """Of the first one nothing is asked: it makes all tables."""
    faults = []
    for path in sorted((script.find_folder() / "versions").glob("*.py"))[1:]:
        specification = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        before = find_tables_before(load_releases(), revision_files.get_id(path.name))
        faults += [f"alembic/versions/{path.name}: {fault}" for fault in find_faults(render(module.upgrade), before)]
    assert faults == []


BEFORE = {"mailglass_open_orphans": {"event_id", "state"}}


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("ALTER TABLE OURS DROP COLUMN state", "it drops or renames mailglass_open_orphans.state"),
        ('ALTER TABLE OURS ADD region text, DROP "state"', "it drops or renames mailglass_open_orphans.state"),
        ("ALTER TABLE OURS RENAME state TO condition", "it drops or renames mailglass_open_orphans.state"),
        ("ALTER TABLE OURS RENAME TO mailglass_orphans", "it renames mailglass_open_orphans"),
        ("DROP TABLE IF EXISTS OURS", "it drops mailglass_open_orphans"),
        ("ALTER TABLE OURS ADD COLUMN region text NOT NULL", "it makes mailglass_open_orphans.region NOT NULL"),
        ("ALTER TABLE OURS ALTER region SET NOT NULL", "it makes mailglass_open_orphans.region NOT NULL"),
    ],
)
def test_what_the_version_before_cannot_stand_is_refused(sql, fault):
    """Its processes go on while an update rolls out."""
    [sentence] = find_faults(render(lambda: execute(sql.replace("OURS", "{schema}.mailglass_open_orphans"))), BEFORE)
    assert sentence.startswith(fault)


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE {schema}.mailglass_open_orphans DROP COLUMN unused, ALTER state DROP NOT NULL",
        "ALTER TABLE {schema}.mailglass_open_orphans ALTER state DROP DEFAULT",
        "ALTER TABLE {schema}.mailglass_open_orphans ADD price numeric(9, 2) NOT NULL DEFAULT 0",
        "ALTER TABLE {schema}.mailglass_open_orphans DROP CONSTRAINT mailglass_open_orphans_state_check",
        "DROP TABLE {schema}.mailglass_reconcile_unused",
        "CREATE TABLE {schema}.mailglass_reconcile_regions (name text NOT NULL)",
    ],
)
def test_what_the_version_before_does_not_use_may_go(sql):
    assert list(find_faults(render(lambda: execute(sql)), BEFORE)) == []


def test_alembic_s_own_operations_are_read_too():
    table = {"table_name": "mailglass_open_orphans", "schema": "public"}
    operations = (
        lambda: op.drop_column(column_name="state", **table),
        lambda: op.alter_column(column_name="state", new_column_name="condition", **table),
        lambda: op.add_column(column=sa.Column("region", sa.Text(), nullable=False), **table),
        lambda: op.rename_table("mailglass_open_orphans", "mailglass_orphans", schema="public"),
        lambda: op.drop_table(**table),
    )
    assert [len(list(find_faults(render(operation), BEFORE))) for operation in operations] == [1] * 5


def test_a_column_and_the_recipe_for_rows_pass_as_two_revisions():
    """Together they would keep every writer waiting for the lock of the column."""
    recipe = {"op": op, "execute": execute}
    exec(RECIPE, recipe)  # noqa: S102
    assert list(find_faults(render(add_column), {})) == []
    statements = render(recipe["upgrade"])
    assert "UPDATE" in statements
    assert list(find_faults(statements, {})) == []

    def both():
        add_column()
        recipe["upgrade"]()

    [sentence] = find_faults(render(both), {})
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
    [sentence] = find_faults(render(lambda: execute(sql)), {})
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
    [sentence] = find_faults(render(lambda: execute(sql.replace("NAME", table))), {})
    assert sentence.startswith(f"it changes {table}:")
    [sentence] = find_faults(render(lambda: add_column(table)), {})
    assert sentence.startswith(f"it changes {table}:")
    fill = "UPDATE {schema}.mailglass_open_orphans SET region = '' FROM {schema}.NAME JOIN NAME AS t ON NAME.id = t.id"
    assert list(find_faults(render(lambda: execute(fill.replace("NAME", table))), {})) == []
    assert list(find_faults(render(lambda: add_column(f"{table}_ours")), {})) == []


def test_a_new_revision_is_a_file_that_lint_accepts(tmp_path):
    """Alembic's own template has single quotes and imports that a revision may not need."""
    folder = tmp_path / "alembic"
    shutil.copytree(script.find_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = Config()
    config.set_main_option("script_location", str(folder))
    made = command.revision(config, "A region", rev_id=NEXT)
    text = Path(made.path).read_text()
    assert (
        text
        == f'''"""A region."""

revision = "{NEXT}"
down_revision = "{VERSION}"


def upgrade() -> None:
    pass
'''
    )
