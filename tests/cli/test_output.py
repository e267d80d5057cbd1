"""The output of a dry run, and what is common to every command's output."""

import json
import re

import pytest

import commands
import factories
import mailglass_reconcile
from handling import failing

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]


def test_a_verbose_dry_run_lists_each_event_and_its_delivery_and_writes_nothing(db):
    """Each link is a line before the counts, and a limit applies; JSON has the counts only."""
    pairs = {}
    for message in ("one", "two"):
        delivery = factories.delivery(db, message)
        pairs[factories.orphan(db, factories.postmark(message))] = delivery
    factories.orphan(db, factories.postmark("none"))
    counts = commands.run(db, "sweep", "--dry-run", "--json").stdout
    assert commands.conforming("sweep", counts)[0]["linked"] == 2
    lines = commands.run_here("sweep", "--dry-run", "--verbose").stdout.splitlines()
    assert sorted(lines[:2]) == sorted(f"{event} -> {delivery}" for event, delivery in pairs.items())
    assert lines[2].startswith("would link 2 of 3 open events")
    assert len(commands.run_here("sweep", "--dry-run", "--verbose", "--limit", "1").stdout.splitlines()) == 5
    assert db.count_links() == 0


def test_a_table_in_a_pipe_has_a_line_per_row(db):
    """Long cells are not wrapped, so that a line can be searched."""
    tenant = "t" * 200
    factories.orphan(db, factories.postmark("m"), tenant_id=tenant)
    assert tenant in commands.run_here("status").output


def test_every_command_prints_what_its_schema_says(db):
    for _ in range(2):
        for name in ("sweep", "prune", "status", "doctor"):
            assert commands.conforming(name, commands.run_here(name, "--json").stdout)
        factories.delivery(db, "one")
        for message in ("one", "two"):
            factories.orphan(db, factories.postmark(message))
    assert db.count_links() == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--dead",), ("--waiting",), ("--retry",)])
def test_dispatch_prints_what_its_schema_says(handler_db, arguments):
    failing("bad", ValueError())
    factories.delivery(handler_db, "one")
    factories.orphan(handler_db, factories.postmark("one"))
    mailglass_reconcile.reconcile()
    mailglass_reconcile.dispatch()
    handler_db.run("UPDATE mailglass_handler_outbox SET state = 'dead', finished_at = now()")
    if arguments == ("--waiting",):
        handler_db.run("UPDATE mailglass_handler_outbox SET state = 'waiting', finished_at = NULL")
    for _ in range(2):
        assert commands.conforming("dispatch", commands.run_here("dispatch", *arguments, "--json").stdout)
        handler_db.run("DELETE FROM mailglass_handler_outbox")
    handler_db.broken.add("I14")


def test_there_is_a_schema_for_each_command_that_prints_json():
    """Its name is the command's or begins with it; `follow` prints the lines of `sweep`."""
    schemas = {file.stem.partition("_")[0] for file in commands.SCHEMAS.glob("*.json")}
    assert schemas | {"follow"} == {
        name for name, command in commands.SUBCOMMANDS.items() if "as_json" in {p.name for p in command.params}
    }


WORK = {
    "sweep": ["--json"],
    "prune": ["--json"],
    "status": ["--json"],
    "orphans": ["--json"],
    "explain": ["--message-id", "one", "--json"],
    "rekey": [],
}


@pytest.mark.parametrize("name", WORK)
def test_a_command_in_a_process_of_its_own_does_what_it_does_within_another_one(db, name):
    """All other tests may run it within their own process."""
    factories.orphan(db, factories.postmark("one"))
    result = commands.run_forked(db, name, *WORK[name])
    assert (result.returncode, result.stderr) == (0, "")
    output = commands.run(db, name, *WORK[name]).stdout
    assert [shape(line) for line in result.stdout.splitlines()] == [shape(line) for line in output.splitlines()]


def shape(line):
    """Return the names of a JSON object's fields, or the line."""
    return list(json.loads(line)) if line.startswith("{") else line


@pytest.mark.parametrize("name", sorted(commands.SUBCOMMANDS))
def test_a_command_shows_an_example_in_its_help(name):
    stdout = commands.run_here(name, "--help").stdout
    assert f" mailglass-reconcile {name}" in stdout.partition("Example")[2]


@pytest.mark.parametrize("name", sorted(commands.SUBCOMMANDS))
def test_the_list_of_commands_has_the_first_sentences_of_each_ones_help(name):
    """`--help` has a copy of them, because it loads no subcommand."""
    help_text = commands.SUBCOMMANDS[name].help
    listed = next(text for listed_name, text in listing() if listed_name == name)
    assert " ".join(help_text.partition("\n\n")[0].split()) == listed


def test_help_lists_each_command_once_in_three_groups():
    """What an operator needs every day comes first, and the demo does not."""
    text = commands.run_here("--help").stdout
    titles = re.findall(r"^([A-Z][a-z ]+):$", text, re.M)
    assert titles == ["Options", "Every day", "Repair", "Set up and run"]
    names = [name for name, _ in listing()]
    assert (names[:3], sorted(names)) == (["status", "doctor", "sweep"], sorted(commands.SUBCOMMANDS))


def listing():
    """Return the names and sentences that `--help` lists."""
    text = commands.run_here("--help").stdout.partition("Every day:\n")[2].partition("All settings:")[0]
    rows = re.findall(r"^  (\w+) +(.+(?:\n {6,}.+)*)", text, re.M)
    return [(name, " ".join(sentence.split())) for name, sentence in rows]
