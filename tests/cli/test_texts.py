"""Lines for a person: hints, and questions that need a terminal."""

import pytest

import commands
import factories

pytestmark = pytest.mark.version_independent


def test_a_table_in_a_pipe_has_a_line_per_row(db):
    """Long cells are not wrapped, so that a line can be searched."""
    tenant = "t" * 200
    factories.orphan(db, factories.postmark("m"), tenant_id=tenant)
    assert tenant in commands.run_here("status").output


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_status_of_a_mistyped_tenant_gets_a_hint(db, arguments):
    """A similar name is suggested on stderr; a tenant without open orphans gets none."""
    factories.delivery(db, "m-1")
    result = commands.run_here("status", "--tenant", "acne", *arguments)
    assert (result.exit_code, result.stderr) == (0, "no event or delivery has tenant 'acne'; did you mean 'acme'?\n")
    assert commands.run_here("status", "--tenant", "acme", *arguments).stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("link", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a11", "--reason", "known"),
        ("erase", "ada@example.com"),
        ("sweep", "--event", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10"),
        ("migrate", "--remove"),
    ],
)
def test_a_command_that_asks_before_it_writes_needs_a_terminal_or_yes(db, arguments):
    """The error is one sentence and exit code 2, before anything is read or written."""
    result = commands.run_unchecked(db, *arguments)
    assert (result.returncode, "no terminal to confirm on: pass --yes" in result.stderr) == (2, True), result.stderr
