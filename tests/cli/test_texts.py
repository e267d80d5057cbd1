"""Nothing that a row holds steers the operator's terminal, or is read as markup."""

import re

import pytest

import commands
import factories

HOSTILE = "\x1b[2J[red]x[/red][/]\u202e"
SHOWN = "\\x1b[2J[red]x[/red][/]\\u202e"

DEAD = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, error, next_at,
                                      inserted_at, finished_at)
VALUES (gen_random_uuid(), CAST(:words AS text), gen_random_uuid(), CAST(:words AS text), 'dead', 9,
        CAST(:words AS text), now(), now(), now())
"""

RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error, scanned, linked)
VALUES (now(), now(), 'full', CAST(:words AS text), 'failed', CAST(:words AS text), 0, 0)
"""


def is_plain(text):
    """Whether each line can be printed as it is."""
    return all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("arguments", [("dispatch", "--dead"), ("status",), ("status", "--check")])
def test_each_cell_and_line_is_escaped(db, arguments):
    """Type, error, name of a handler, origin, provider and tenant; in a pipe nothing is cut or wrapped."""
    db.run(DEAD, words=HOSTILE)
    db.run(RUN, words=HOSTILE)
    factories.orphan(db, {"provider": HOSTILE, "message_id": "m"}, tenant_id=HOSTILE)
    said = commands.inside(*arguments).output
    assert is_plain(said)
    assert "[red]x[/red]" not in re.sub(re.escape(SHOWN.lower()), "", said.lower())
    if arguments != ("status", "--check"):
        assert SHOWN in said
    db.run("DELETE FROM mailglass_handler_outbox")
    db.broken.add("I14")


def test_a_table_in_a_pipe_has_a_line_per_row(db):
    """Long cells are not wrapped, so that a line can be searched."""
    tenant = "t" * 200
    factories.orphan(db, factories.postmark("m"), tenant_id=tenant)
    assert tenant in commands.inside("status").output


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_status_of_a_mistyped_tenant_gets_a_hint(db, arguments):
    """On standard error, with the one that was probably meant; a tenant with nothing open gets none."""
    factories.delivery(db, "m-1")
    done = commands.inside("status", "--tenant", "acne", *arguments)
    assert (done.exit_code, done.stderr) == (0, "no event or delivery has tenant 'acne'; did you mean 'acme'?\n")
    assert commands.inside("status", "--tenant", "acme", *arguments).stderr == ""


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
    """One sentence and exit code 2, before anything is read or written."""
    done = commands.tried(db, *arguments)
    assert (done.returncode, "no terminal to confirm on: pass --yes" in done.stderr) == (2, True), done.stderr
