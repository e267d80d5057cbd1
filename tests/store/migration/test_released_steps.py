"""A released text of the schema changes only under a new name, or with a revision of its own."""

import pytest

from mailglass_reconcile.store.schema import revision, script
from released_steps import digests_of, find_changes, load_releases, load_revisions

FIRST = {"0001": "op.create_table()"}
RELEASES = {"0001": digests_of(script.steps(), FIRST)}
SECOND = {**FIRST, "0002": "pass"}


def test_the_schema_is_that_of_the_releases():
    """Otherwise `migrate` of the version before would put its older text back while an update rolls out."""
    assert list(find_changes(load_releases(), revision.VERSION, script.steps(), load_revisions())) == []


def test_a_changed_trigger_needs_a_revision():
    """Until then a process of the release would take the database for its own."""
    changed = [step._replace(sql=f"{step.sql}\n--") if step.kind == "trigger" else step for step in script.steps()]
    assert list(find_changes(RELEASES, "0001", script.steps(), FIRST)) == []
    [sentence] = find_changes(RELEASES, "0001", changed, FIRST)
    assert sentence.endswith("add a revision, empty if need be")
    assert list(find_changes(RELEASES, "0002", changed, SECOND)) == []


def test_a_released_function_never_changes():
    """Processes of the release still call it, whatever revision comes with the change."""
    name = "mailglass_reconcile_link_v1"
    changed = [step._replace(sql=f"{step.sql}\n--") if step.name == name else step for step in script.steps()]
    [sentence] = find_changes(RELEASES, "0002", changed, SECOND)
    assert sentence.startswith(f"function {name} has another text")


@pytest.mark.parametrize(("version", "is_needed"), [("0002", True), ("1001", False)])
def test_a_released_function_stays_until_the_next_major_version(version, is_needed):
    """A database that the new version makes would not have it, and processes of the release work on such a one."""
    name = "mailglass_reconcile_link_v1"
    left = [step for step in script.steps() if step.name != name]
    sentences = list(find_changes(RELEASES, version, left, {**FIRST, version: "pass"}))
    assert [sentence.startswith(f"function {name} is gone") for sentence in sentences] == [True] * is_needed


def test_a_step_that_goes_needs_a_revision_that_drops_its_object():
    left = [step for step in script.steps() if step.name != "mailglass_handler_outbox_finished_idx"]
    [sentence] = find_changes(RELEASES, "0001", left, FIRST)
    assert sentence.endswith("add a revision, which drops its object")
    assert list(find_changes(RELEASES, "0002", left, SECOND)) == []


@pytest.mark.parametrize("revisions", [{"0002": "pass"}, {"0001": "op.create_table() # and a column", "0002": "pass"}])
def test_a_released_revision_never_changes(revisions):
    """A database that has run it would lack what is new in it, and its revision would say that it has all."""
    [sentence] = find_changes(RELEASES, "0002", script.steps(), revisions)
    assert sentence.startswith("revision 0001 is not as it was released")
