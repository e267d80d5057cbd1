"""Each command in a remedy or on the doctor's page works with its role in docs/roles.md."""

import re
import shlex
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy.engine import make_url

import commands
import factories
import granting
import mailglass_reconcile
import pages
from database import Database
from marking import nightly_unless

pytestmark = pytest.mark.slow

PLACES = [pages.ROOT / "docs" / name for name in ("doctor.md", "trouble.md")]
PLACES += [*(pages.ROOT / "mailglass_reconcile").rglob("*.py"), *(pages.ROOT / "mailglass_reconcile").rglob("*.html")]
COMMAND = re.compile(r"`mailglass-reconcile ([^`&|\n\"]+)")
COMMANDS_NAMED = sorted({command.strip() for path in PLACES for command in COMMAND.findall(path.read_text())})
"""As they stand there, with placeholders."""
NOT_RUN = {"trigger", "receive", "serve", "listen", "follow", "demo"}
"""They do not end, or post to a receiver; test_grants.py runs them with their roles."""
COMMANDS_RUN = [line for line in COMMANDS_NAMED if line.split()[0] not in NOT_RUN]
IN_CI = ("doctor --repair", "sweep")
EVENT, DELIVERY = (str(uuid.UUID(int=number)) for number in (1, 2))
PLACEHOLDERS = {"EVENT_ID": EVENT, "DELIVERY_ID": DELIVERY, "TYPE": "bounced", "MESSAGE_ID": "m-1", "''": "ticket"}
WITH_PROMPT = {"migrate --remove", "migrate --remove --tables", "link", "dispatch --forget"}
WITH_PROMPT |= {"dispatch --replay", "sweep --event"}
"""They ask for confirmation."""


def roles() -> dict[str, str]:
    """Return the role of each command, or of a command with an option, from the page's table."""
    rows = re.findall(r"^\| `?(\w+)`? \| ([^|]*) \|", (pages.ROOT / "docs/roles.md").read_text(), re.MULTILINE)
    return {command: role for role, runs in rows for command in re.findall(r"`([a-z]+(?: --[a-z]+)?)`", runs)}


def role_of(command: str) -> str:
    """Return the role that runs a command, which may depend on its options."""
    fitting = [name for name in roles() if command == name or command.startswith(f"{name} ")]
    assert fitting, f"docs/roles.md gives no role the command {command}"
    return roles()[max(fitting, key=len)]


def fill_placeholders(command: str) -> list[str]:
    """Return a command's arguments with values for its placeholders."""
    text = re.sub(r"\{name\}|OLD|NAME", "suppress", command)
    text = re.sub(r"\{[^}]*type\}", "bounced", re.sub(r"\{[^}]*event_id\}", EVENT, text))
    arguments = [PLACEHOLDERS.get(word, word) for word in shlex.split(text)]
    arguments += ["m-1"] if arguments[-1] == "--message-id" else []
    arguments += ["--yes"] if any(text == name or text.startswith(f"{name} ") for name in WITH_PROMPT) else []
    return [argument or "ticket" for argument in arguments]


@pytest.fixture
def acting(db: Database, admin) -> Iterator:
    """Return the settings of the page's roles by their documented names; the owner is the database's own."""
    logins = {}
    for documented, statements in granting.STATEMENTS.items():
        logins[documented] = login = f"mgtest_role_{uuid.uuid4().hex[:12]}"
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {login} LOGIN PASSWORD 'secret'")
        db.run("".join(statements).replace(documented, login))

    def url(role: str) -> str:
        if role == "owner":
            return db.url
        address = make_url(db.url).set(username=logins[role], password="secret")  # noqa: S106
        return address.render_as_string(hide_password=False)

    yield url
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    for login in logins.values():
        db.run(f"DROP OWNED BY {login}")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {login}")


@pytest.mark.parametrize("command", nightly_unless(IN_CI.__contains__, COMMANDS_RUN))
def test_a_command_that_is_advised_may_be_run_by_the_role_of_the_page(db, acting, command):
    """It may find a fault, but it has every privilege and option."""
    factories.insert(
        db,
        [factories.delivery_row("m-1", id=DELIVERY)],
        [factories.orphan_row(factories.postmark("m-1"), id=EVENT)],
    )
    db.run("INSERT INTO mailglass_handled_types (type, handler, seen_at, seen_by)"
           " VALUES ('bounced', 'suppress', '2026-01-01', 'web, pid 7')")  # fmt: skip
    result = commands.run_unchecked(db, *fill_placeholders(command), MAILGLASS_DATABASE_URL=acting(role_of(command)))
    output = result.stdout + result.stderr
    assert result.returncode in (0, 1), output
    assert not re.search("42501|permission denied|lacks a privilege|must be owner", output), output


def test_no_command_for_a_dropped_table_is_refused(db):
    """`migrate` is, because it would make an empty table."""
    db.run("DROP TABLE mailglass_handled_types")
    section = PLACES[0].read_text().partition("### schema\n")[2].partition("\n##")[0]
    advised = [command.strip() for command in COMMAND.findall(section)]

    def is_refused(command):
        result = commands.run_unchecked(db, *shlex.split(command))
        return "nothing was changed" in result.stdout + result.stderr

    assert is_refused("migrate")
    assert advised
    assert [command for command in advised if is_refused(command)] == []


def test_each_command_that_changes_something_has_one_role():
    """The page has it once."""
    text = (pages.ROOT / "docs/roles.md").read_text()
    for command in ("sweep", "prune", "dispatch", "erase", "link", "migrate", "rekey", "receive"):
        assert len(re.findall(rf"^\|.*`{command}`", text, re.MULTILINE)) == 1, command
