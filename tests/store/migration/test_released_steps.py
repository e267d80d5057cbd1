"""A released text of the schema changes only under a new name, or with a revision of its own."""

from mailglass_reconcile.store import revision, script
from released_steps import find_changes, load_releases

RELEASES = {"0001": {f"{step.kind} {step.name}": step.digest for step in script.steps()}}


def test_the_steps_are_those_of_the_releases():
    """Otherwise `migrate` of the version before would put its older text back while an update rolls out."""
    assert list(find_changes(load_releases(), revision.VERSION, script.steps())) == []


def test_a_changed_trigger_needs_a_revision():
    """Until then a process of the release would take the database for its own."""
    changed = [step._replace(sql=f"{step.sql}\n--") if step.kind == "trigger" else step for step in script.steps()]
    assert list(find_changes(RELEASES, "0001", script.steps())) == []
    [sentence] = find_changes(RELEASES, "0001", changed)
    assert sentence.endswith("add a revision, empty if need be")
    assert list(find_changes(RELEASES, "0002", changed)) == []


def test_a_released_function_never_changes():
    """Processes of the release still call it, whatever revision comes with the change."""
    name = "mailglass_reconcile_link_v1"
    changed = [step._replace(sql=f"{step.sql}\n--") if step.name == name else step for step in script.steps()]
    [sentence] = find_changes(RELEASES, "0002", changed)
    assert sentence.startswith(f"function {name} has another text")
