"""A database at another revision than this version's gets the same message everywhere."""

import uuid

import pytest

import commands
import factories
import revisions
from mailglass_reconcile import Sent, record_send, record_webhook
from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.store.schema import script
from mailglass_reconcile.store.schema.revision import VERSION, find_mismatch, require
from recording import event

pytestmark = pytest.mark.long

UNRELEASED = (
    f"the database is at revision {revisions.UNRELEASED} of an unreleased version, this one needs {VERSION}: run"
    " `mailglass-reconcile migrate --remove`, and then `mailglass-reconcile migrate`"
)
ID = str(uuid.UUID(int=1))
COMMANDS = [
    *(
        ["sweep"],
        ["sweep", "--dry-run"],
        ["sweep", "--event", ID, "--yes"],
        ["prune"],
        ["dispatch"],
        ["rekey"],
    ),
    *(["status"], ["status", "--check"], ["orphans"], ["explain", ID], ["find", "m-1"], ["doctor"]),
    *(
        ["link", ID, ID, "--reason", "r", "--yes"],
        ["erase", "a@example.com", "--yes"],
        ["migrate"],
        ["migrate", "--check"],
    ),
]


@pytest.fixture
def earlier(db):
    """A database of an earlier checkout, without some functions and columns, with one orphan."""
    factories.insert(db, events=[factories.orphan_row(factories.postmark("m-1"), id=ID)])
    db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=revisions.UNRELEASED)
    db.run("".join(f"DROP FUNCTION {name} CASCADE;" for name in script.steps_of_kind("function")))
    db.run("ALTER TABLE mailglass_open_orphans DROP COLUMN state")
    return db


@pytest.mark.slow
def test_every_command_says_how_to_get_past_an_unreleased_revision(earlier):
    """`migrate` alone would refuse, so no message may name it first."""
    for arguments in COMMANDS:
        result = commands.run_unchecked(earlier, *arguments)
        assert result.returncode == 1, arguments
        output = "".join((result.stdout + result.stderr).split())
        assert [part for part in UNRELEASED.split(": ") if part.replace(" ", "") not in output] == [], arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda connection: record_send(connection, provider="postmark", sent=[Sent(recipient="a@b.c", message_id="m")]),
        lambda connection: record_webhook(connection, provider="postmark", events=[event()]),
    ],
    ids=["record_send", "record_webhook"],
)
def test_the_writers_print_the_same_message(earlier, call):
    """After the mail is sent, the log has nothing else."""
    with earlier.engine.begin() as connection, pytest.raises(SchemaOutdatedError) as refused:
        call(connection)
    assert str(refused.value) == UNRELEASED


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        *((version, True) for version in (revisions.NEXT, "0999")),
        *((version, False) for version in ("1000", "9999", "0000", f"{revisions.NEXT}a", revisions.UNRELEASED)),
    ],
)
def test_a_process_accepts_a_later_release_of_its_major_and_nothing_else(version, accepted):
    """A planted 9999 and a checkout's id with a letter are refused."""
    if accepted:
        require(version)
        return
    with pytest.raises(SchemaOutdatedError, match=f"the database is at revision {version}"):
        require(version)


def test_a_later_revision_requires_the_newer_version_and_a_missing_one_migrate():
    """Each remedy can be followed as it stands."""
    assert find_mismatch(VERSION) is None
    assert "install the newer mailglass-reconcile here" in str(find_mismatch("9999"))
    assert str(find_mismatch(None)).endswith("run `mailglass-reconcile migrate`")
