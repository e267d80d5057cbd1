"""In a schema without a ledger, commands name the setting to check."""

import pytest

import commands
from catalog import installation, live
from database import Database
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

COMMANDS = {
    "dispatch": ["dispatch"],
    "dispatch --dead": ["dispatch", "--dead"],
    "dispatch --waiting": ["dispatch", "--waiting"],
    "erase": ["erase", "a@example.com", "--yes"],
    "explain": ["explain", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10"],
    "find": ["find", "m-1"],
    "follow": ["follow"],
    "link": [
        *("link", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10"),
        *("--reason", "r", "--yes"),
    ],
    "orphans": ["orphans"],
    "prune": ["prune"],
    "receive": ["receive", "--port", "0"],
    "rekey": ["rekey"],
    "serve": ["serve", "--port", "0"],
    "status": ["status"],
    "status --check": ["status", "--check"],
    "sweep": ["sweep"],
    "sweep --dry-run": ["sweep", "--dry-run"],
    "sweep --event": ["sweep", "--event", "0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10", "--yes"],
}
WITHOUT_A_LOOK = {"demo", "doctor", "listen", "migrate", "trigger"}


def test_every_command_that_opens_the_database_is_here():
    """Missing are only commands that say more of the schema, and those with another database or none."""
    assert {name.partition(" ")[0] for name in COMMANDS} | WITHOUT_A_LOOK == set(commands.SUBCOMMANDS)


def run(url, redis_url, names=COMMANDS, **environment):
    """Run commands on a database; return the exit code and the output of each."""
    settings = Settings(database_url=url, redis_url=redis_url)
    db = Database(url, settings, engines.create_engine(settings), None)
    results = {name: commands.run_unchecked(db, *COMMANDS[name], **environment) for name in names}
    return {name: (result.returncode, (result.stdout + result.stderr).strip()) for name, result in results.items()}


def test_a_setting_that_is_missing_is_named_by_every_command(empty_database_url, redis_url):
    live(empty_database_url, "mailglass", "2.x")
    for name, (code, output) in run(empty_database_url, redis_url).items():
        assert code == 1, (name, output)
        assert "MAILGLASS_DATABASE_SCHEMA" in output, name
        assert len(output.splitlines()) == 1, (name, output)


@pytest.mark.parametrize("chosen", [False, True])
def test_status_warns_of_a_second_set_of_tables(empty_database_url, redis_url, chosen):
    """Ours are in `public`, Mailglass's in its own schema, which makes no installation unhealthy."""
    installation(empty_database_url).migrate()
    mailglass = live(empty_database_url, "mailglass", "2.x")
    more = {"MAILGLASS_DATABASE_SCHEMA": "public"} if chosen else {}
    [warning] = warnings(empty_database_url, redis_url, **more)
    assert warning.startswith(
        "schema: schema mailglass has a mailglass_events too, which is not used: set MAILGLASS_DATABASE_SCHEMA"
    )
    mailglass.migrate()
    assert warnings(empty_database_url, redis_url, MAILGLASS_DATABASE_SCHEMA="mailglass") == []


def warnings(url, redis_url, **environment):
    """Return the warnings that `status --json` prints."""
    db = Database(url, Settings(database_url=url, redis_url=redis_url), None, None)
    [printed] = commands.conforming("status", commands.run(db, "status", "--json", **environment).stdout)
    assert not any("schema" in problem for problem in printed["problems"])
    return printed["warnings"]


def test_without_its_ledger_a_database_is_not_migrated(empty_database_url, redis_url):
    """`status` said "0 open events", and a sweep that there is nothing to do; `dispatch` has jobs all the same."""
    database = installation(empty_database_url)
    database.migrate()
    database.run("DROP TABLE mailglass_events CASCADE")
    names = [name for name in COMMANDS if not name.startswith("dispatch")]
    for name, (code, output) in run(empty_database_url, redis_url, names).items():
        assert code == 1, (name, output)
        reason = (
            "no mailglass_events" if name == "status --check" else "the database is not migrated, this version needs"
        )
        assert reason in output, (name, output)
        assert len(output.splitlines()) == 1, (name, output)
