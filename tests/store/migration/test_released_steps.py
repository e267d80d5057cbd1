"""A released text of the schema changes only under a new name, or with a revision of its own."""

import re

import pytest

import revision_files
from mailglass_reconcile.store.schema import revision, script
from released_steps import Schema, describe, find_changes, load_releases, load_schema

FIRST = {"0001_initial.py": "op.create_table()"}
SECOND = {**FIRST, "0002_priority.py": "pass"}
RELEASES = {"0001": describe(Schema(script.steps(), FIRST, revision.TABLES))}
LINK = "mailglass_reconcile_link_v1"


def find(revisions, *, steps=(), tables=revision.TABLES):
    return list(find_changes(RELEASES, Schema(tuple(steps) or script.steps(), revisions, tables)))


def replace(name, old, new):
    """Return all steps, of which one has another text."""
    assert any(old in step.sql for step in script.steps() if step.name == name)
    return [step._replace(sql=step.sql.replace(old, new)) if step.name == name else step for step in script.steps()]


def test_the_schema_is_that_of_the_releases():
    """Otherwise `migrate` of the version before would put its older text back while an update rolls out."""
    assert list(find_changes(load_releases(), load_schema())) == []


def test_a_revision_without_its_id_or_a_migration_of_django_s_is_named():
    """No test runs before."""
    revisions = {f"{id_}_a.py": f'\nrevision = "{id_}"\n' for id_ in ("0001", "0002")}
    migrations = {f"{id_}_a.py": f'Migrate("{id_}")' for id_ in ("0001", "0002")}
    assert list(revision_files.find_misnamed(revisions, migrations)) == []
    [sentence] = revision_files.find_misnamed({**revisions, "0002_a.py": '\nrevision = "0003"\n'}, migrations)
    assert sentence.startswith("alembic/versions/0002_a.py has another revision inside than 0002: rename the file")
    for others in ({"0001_a.py": 'Migrate("0001")', "0002_b.py": 'Migrate("0002")'}, {**migrations, "0002_a.py": ""}):
        [sentence] = revision_files.find_misnamed(revisions, others)
        assert sentence.startswith(f'{revision_files.MIGRATIONS}/0002_a.py is missing, or lacks Migrate("0002")')


def test_a_changed_trigger_needs_a_revision():
    """Until then a process of the release would take the database for its own."""
    changed = replace("mailglass_open_orphans_add", "WHEN (", "WHEN\n(")
    assert find(FIRST) == []
    [sentence] = find(FIRST, steps=changed)
    assert sentence.startswith("alembic/schema/open_orphans.sql: trigger mailglass_open_orphans_add is not as at")
    assert sentence.endswith("add a revision, empty if need be")
    assert find(SECOND, steps=changed) == []


def test_a_new_step_and_a_new_column_need_a_revision():
    step = script.steps()[0]._replace(name="mailglass_reconcile_new_idx")
    [sentence] = find(FIRST, steps=(*script.steps(), step))
    assert "mailglass_reconcile_new_idx is not in revision 0001: add a revision" in sentence
    tables = {**revision.TABLES, "mailglass_open_orphan_ids": "event_id position candidate_id region"}
    [sentence] = find(FIRST, tables=tables)
    assert sentence.startswith("mailglass_reconcile/store/schema/revision.py: table mailglass_open_orphan_ids")
    assert find(SECOND, tables=tables) == []


@pytest.mark.parametrize("revisions", [FIRST, SECOND])
def test_a_released_function_never_changes(revisions):
    """Processes of the release still call it, whatever revision comes with the change."""
    [sentence] = find(revisions, steps=replace(LINK, "BEGIN", "BEGIN --"))
    assert sentence.startswith(f"alembic/schema/linking.sql: function {LINK} differs from revision 0001")


def test_every_function_that_is_called_has_its_version_in_its_name():
    """Other arguments or another text are then another function; what a trigger runs nobody calls."""
    called = [step.name for step in script.steps() if step.kind == "function" and not step.is_trigger_function]
    assert [f"alembic/schema: name it {name}_v1" for name in called if not re.search(r"_v\d+$", name)] == []


@pytest.mark.parametrize(("name", "is_needed"), [("0002_priority.py", True), ("1001_next.py", False)])
def test_a_released_function_stays_until_the_next_major_version(name, is_needed):
    """A database that the new version makes would not have it, and processes of the release work on such a one."""
    remaining = [step for step in script.steps() if step.name != LINK]
    sentences = find({**FIRST, name: "pass"}, steps=remaining)
    assert [f"function {LINK} is gone since revision 0001" in sentence for sentence in sentences] == [True] * is_needed


def test_a_step_that_goes_needs_a_revision_that_drops_its_object():
    remaining = [step for step in script.steps() if step.name != "mailglass_handler_outbox_finished_idx"]
    [sentence] = find(FIRST, steps=remaining)
    assert sentence.startswith(
        "alembic/schema/handlers.sql: index mailglass_handler_outbox_finished_idx is not as at revision 0001"
    )
    assert find(SECOND, steps=remaining) == []


@pytest.mark.parametrize("changed", [{}, {"0001_initial.py": "op.create_table() # and a column"}])
def test_a_released_revision_never_changes(changed):
    """A database that has run it would lack what is new in it, and its revision would say that it has all."""
    [sentence] = find({"0002_priority.py": "pass", **changed})
    assert sentence.startswith("alembic/versions/0001_initial.py is not as it was released: restore it")
