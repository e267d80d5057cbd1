"""Rules for every command that prints rows: 80 columns, escaped, no addresses, JSON by its schema."""

import json
import re
from typing import Any

import pytest

import commands
import factories
import mailglass_reconcile
from marking import nightly_unless, slow_unless
from recording import event, record

pytestmark = pytest.mark.version_independent

HOSTILE = "\x1b[2J[red]`x`[/red][/]\u202e" + "long " * 30
CUSTOMER = "ada@example.com"

JOBS = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, attempts, error, next_at,
                                      inserted_at, finished_at)
SELECT gen_random_uuid(), CAST(:words AS text), gen_random_uuid(), CAST(:words AS text), s.state, 9,
       CAST(:words AS text), now() - interval '90 days', now(), CASE s.state WHEN 'dead' THEN now() END
  FROM unnest(ARRAY['waiting', 'dead']) AS s (state)
"""
RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, error, scanned, linked)
VALUES (now(), now(), 'full', 'command', 'failed', CAST(:words AS text), 0, 0)
"""

PRINTING = {
    "status": ["status"],
    "orphans": ["orphans"],
    "orphans of an address": ["orphans", "--recipient", CUSTOMER],
    "expired orphans": ["orphans", "--expired"],
    "find an address": ["find", CUSTOMER],
    "find an id": ["find", "m-1"],
    "explain a delivery": ["explain", "DELIVERY"],
    "explain an event": ["explain", "EVENT"],
    "explain a message": ["explain", "--message-id", "m-1"],
    "waiting jobs": ["dispatch", "--waiting"],
    "dead jobs": ["dispatch", "--dead"],
    "doctor": ["doctor"],
    "a preview of the prune": ["prune", "--dry-run"],
    "a preview of the sweep": ["sweep", "--dry-run"],
    "a preview of an erasure": ["erase", CUSTOMER, "--dry-run"],
}
"""The commands that print what rows hold."""

QUICK = ("status", "orphans", "find an address", "explain an event", "dead jobs", "doctor")
"""Those of which `make test` reads every line; one for each module that prints rows."""

COMMANDS_WITHOUT_ROWS = {
    "demo": "prints its own rows",
    "follow": "logs",
    "link": "is `explain` and a question; tests/cli/test_link.py",
    "listen": "prints what Redis sends; tests/cli/test_listen.py",
    "migrate": "prints SQL",
    "receive": "serves",
    "rekey": "prints a number",
    "serve": "serves",
    "trigger": "prints an answer",
}
SCHEMAS = {"a preview of the prune": "prune_step"}
PASTED = ("mailglass-reconcile ", "  mailglass-reconcile ")
"""How a line begins that is pasted as a whole, whatever its length."""


@pytest.fixture
def hostile(db: Any) -> dict[str, str]:
    """Rows of every kind whose texts try to steer a terminal, and an address in each place that may have one."""
    delivery = factories.delivery(
        db, "m-1", recipient=CUSTOMER, tenant_id=HOSTILE, mailable=HOSTILE, last_event_type=HOSTILE
    )
    orphan = factories.orphan(db, {"provider": HOSTILE, "message_id": "m-1", "reason": CUSTOMER}, type=HOSTILE)
    factories.orphan(db, factories.postmark(HOSTILE), tenant_id=HOSTILE)
    factories.orphan(db, factories.postmark("m-1", email=CUSTOMER), age_seconds=8 * 86_400)
    with db.begin() as connection:
        record(connection, event("m-1", recipient=CUSTOMER), tenant_id="globex")
    mailglass_reconcile.reconcile()
    db.run(JOBS, words=HOSTILE)
    db.run(RUN, words=HOSTILE)
    db.broken.update({"I2", "I7", "I13", "I14"})
    return {"DELIVERY": delivery, "EVENT": orphan}


def arguments_of(name: str, ids: dict[str, str]) -> list[str]:
    """Return the arguments of a command, with the ids of the rows."""
    return [ids.get(argument, argument) for argument in PRINTING[name]]


@pytest.mark.parametrize("name", nightly_unless(("status", "explain an event").__contains__, PRINTING))
def test_a_line_is_printable_and_fits_a_terminal(db, hostile, name):
    """A line in a pipe may be longer, and a command to copy is not wrapped; no line has an address."""
    arguments = arguments_of(name, hostile)
    result = commands.run_unchecked(db, *arguments)
    piped = result.stdout + result.stderr
    terminal = re.sub(r"\x1b\[\d*m", "", commands.run_on_terminal(db, *arguments))  # our own colours
    for text in (piped, terminal):
        assert [line for line in text.splitlines() if not line.isprintable()] == []
        assert CUSTOMER not in text
    assert [line for line in terminal.splitlines() if len(line) > 80 and not line.startswith(PASTED)] == []


@pytest.mark.parametrize(
    "name", slow_unless(QUICK.__contains__, [name for name in PRINTING if name != "a preview of the prune"])
)
def test_every_line_of_json_conforms_to_its_schema(db, hostile, name):
    """No line has an address."""
    arguments = arguments_of(name, hostile)
    result = commands.run_unchecked(db, *arguments, "--json")
    assert commands.conforming(SCHEMAS.get(name, arguments[0]), result.stdout)
    assert CUSTOMER not in result.stdout + json.dumps(result.stdout)


def test_each_command_is_among_those_or_has_a_reason_not_to_be():
    assert {arguments[0] for arguments in PRINTING.values()} | set(COMMANDS_WITHOUT_ROWS) == set(commands.SUBCOMMANDS)
