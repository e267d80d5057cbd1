"""`MAILGLASS_IMPORTS` for the commands: modules of the working directory, and missing ones."""

import pytest

import commands
import factories
import processes

pytestmark = pytest.mark.version_independent

RULE = """
from mailglass_reconcile import key_rule

@key_rule("pigeon", reads=("metadata/ring",))
def pigeon(ring):
    return [ring]
"""


@pytest.mark.slow
def test_a_module_of_the_working_directory_is_found_after_all_others(db, tmp_path):
    """It is searched like a script's folder, but its modules do not replace those of libraries."""
    (tmp_path / "pigeon_rules.py").write_text(RULE)
    (tmp_path / "rich.py").write_text("raise SystemExit(9)")
    factories.delivery(db, "r-1")
    factories.orphan(db, {"provider": "pigeon", "ring": "r-1"})
    environment = {**db.environment(), "MAILGLASS_IMPORTS": "pigeon_rules"}
    command = ["-P", "-m", "mailglass_reconcile", "sweep", "--json"]
    result = processes.run(command, environment, cwd=tmp_path, forked=False)  # a forked one has imported rich
    assert (result.returncode, result.stderr) == (0, "")
    assert commands.conforming("sweep", result.stdout)[0]["linked"] == 1


@pytest.mark.slow
def test_a_missing_module_is_an_error_for_writing_and_a_warning_for_reading_commands(db):
    """A sweep without a rule would leave linkable orphans; a list of them is useful all the same."""
    event = factories.orphan(db, {"provider": "pigeon", "ring": "r-1"})
    for arguments in (("sweep",), ("dispatch",)):
        result = commands.run_forked(db, *arguments, MAILGLASS_IMPORTS="pigeon_rules")
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert "MAILGLASS_IMPORTS: cannot import pigeon_rules" in result.stderr
    for arguments in (("status",), ("orphans",), ("explain", event), ("sweep", "--dry-run")):
        result = commands.run_forked(db, *arguments, MAILGLASS_IMPORTS="pigeon_rules")
        assert result.returncode == 0, result.stderr
        [warned, *further_lines] = result.stderr.splitlines()
        assert warned.startswith("WARNING: MAILGLASS_IMPORTS: cannot import pigeon_rules")
        assert further_lines == ["1 orphan; no full sweep has ended yet", "  1 unseen: acme"] * (
            arguments == ("orphans",)
        )
