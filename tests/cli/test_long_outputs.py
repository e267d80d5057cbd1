"""What a person reads in a pipe: whole outputs, in the folder `snapshots`."""

from pathlib import Path

import pytest

import commands
import factories
import mailglass_reconcile
import recording
from database import Database
from snapshots import Snapshot, normalize

pytestmark = pytest.mark.version_independent

ADA = "ada.lovelace@example.com"
DAY = 86_400


@pytest.fixture
def rows(db: Database) -> dict[str, str]:
    """The ids of some deliveries, and of an event in each state, by name."""
    names = {}

    def send(name: str, message_id: str, **columns: object) -> str:
        """Insert a delivery, each a minute older than the one before."""
        columns = {"provider": "postmark", "age_seconds": 240 + 60 * len(names), **columns}
        names[name] = factories.delivery(db, message_id, id=f"00000000-0000-4000-8000-{len(names):012}", **columns)
        return names[name]

    def arrive(name: str, message_id: object, *, provider: str = "postmark", **columns: object) -> None:
        """Insert an event, each a minute older than the one before."""
        metadata = {"provider": provider, "message_id": message_id, **columns.pop("metadata", {})}  # type: ignore[dict-item]
        names[name] = factories.orphan(db, metadata, **{"age_seconds": 300 + 60 * len(names), **columns})

    send("DELIVERY", "m-1", recipient=ADA)
    arrive("LINKED", "m-1", type="opened")
    bounced = recording.event("m-8", "bounced", reject_reason="invalid", bounce="hard", smtp_status="550 5.1.1")
    send("BOUNCED-DELIVERY", "m-8")
    mailglass_reconcile.reconcile()
    with db.begin() as connection:
        (recorded,) = recording.record(connection, bounced)
    names["ATTACHED"] = str(recorded.event_id)
    send("SILENT-DELIVERY", "m-7")
    send("TWIN-1", "twice", provider=None)
    send("TWIN-2", "twice", provider=None, mailable="Invoice")
    send("FOREIGN-TWIN", "twice", provider=None, tenant_id="globex")
    send("FOREIGN-DELIVERY", "theirs", tenant_id="globex", recipient="grace@example.com")
    send("HERS", "hers", recipient="grace@example.com")
    arrive("UNMATCHED", "m-2")
    arrive("UNMATCHABLE", 1.5)
    arrive("AMBIGUOUS", "twice", type="bounced")
    arrive("RECIPIENT-MISMATCH", "hers", metadata={"recipient": ADA})
    arrive("TENANT-MISMATCH", "theirs", metadata={"recipient": ADA})
    arrive("RECIPIENT-LOST", "hers", metadata={"recipient_known": True})
    send("GENERATED", "mailglass-synthetic-1", provider="sparkpost")
    arrive("GENERATED-ID", None, provider="sparkpost", metadata={"transmission_id": 7})
    arrive("MISTYPED", "m-3", provider="sendgird")
    arrive("TOO-LONG", "m-4", metadata={"body": "x" * 66_000})
    arrive("EXPIRED", "m-7", age_seconds=9 * DAY)
    arrive("EXPIRED-UNMATCHED", "m-6", age_seconds=8 * DAY)
    mailglass_reconcile.reconcile()
    mailglass_reconcile.prune()
    send("UNSEEN-DELIVERY", "m-9")
    arrive("UNSEEN", "m-9")
    arrive("WAITING", "m-1", type="clicked", age_seconds=-200)
    arrive("NO-ORPHAN", "m-1", needs_reconciliation=False)
    return names


EVENTS = (
    *("LINKED", "ATTACHED", "UNMATCHED", "UNMATCHABLE", "AMBIGUOUS", "RECIPIENT-MISMATCH", "TENANT-MISMATCH"),
    *("RECIPIENT-LOST", "GENERATED-ID", "MISTYPED", "TOO-LONG", "EXPIRED", "UNSEEN", "WAITING", "NO-ORPHAN"),
)
OUTPUTS = {
    **{f"explain-{name.lower()}": ["explain", name] for name in (*EVENTS, "DELIVERY", "FOREIGN-DELIVERY")},
    "find-address": ["find", ADA],
    "find-message": ["find", "theirs"],
    "link-dry-run": ["link", "AMBIGUOUS", "TWIN-2", "--reason", "ticket 4711", "--dry-run"],
    "link-other-recipient": ["link", "RECIPIENT-MISMATCH", "HERS", "--reason", "ticket 4711", "--dry-run"],
    "orphans": ["orphans"],
    "orphans-expired": ["orphans", "--expired"],
    "orphans-mistyped": ["orphans", "--provider", "sendgird"],
    "orphans-page": ["orphans", "--limit", "2"],
    "prune-dry-run": ["prune", "--dry-run"],
    "status": ["status"],
    "sweep-dry-run": ["sweep", "--dry-run", "--verbose"],
    "sweep": ["sweep"],  # the last one, because it writes
}
"""The arguments of the command whose output a file has; names of rows stand for their ids."""


def test_each_command_prints_to_a_pipe_what_its_snapshot_has(
    db: Database, rows: dict[str, str], snapshot: Snapshot, subtests: pytest.Subtests
) -> None:
    names = {id_: name for name, id_ in rows.items()}
    for name, arguments in OUTPUTS.items():
        with subtests.test(name):
            result = commands.run_unchecked(db, *(rows.get(argument, argument) for argument in arguments))
            text = result.stdout + (f"--- stderr ---\n{result.stderr}" if result.stderr else "")
            assert "lovelace" not in text
            snapshot(name, normalize(text, names))


def test_json_has_the_state_that_the_lines_have_and_a_message_is_explained_by_its_id_too(
    db: Database, rows: dict[str, str]
) -> None:
    by_id = commands.run_unchecked(db, "explain", "--message-id", "m-1").stdout
    assert by_id == commands.run_unchecked(db, "explain", rows["DELIVERY"]).stdout
    for name in EVENTS:
        lines = commands.run_unchecked(db, "explain", rows[name]).stdout
        [document] = commands.conforming("explain", commands.run_unchecked(db, "explain", rows[name], "--json").stdout)
        assert f"{document['event_id']}: {document['state']}\n" in lines


def test_each_snapshot_is_of_a_command() -> None:
    assert {file.stem for file in Path(__file__).with_name("snapshots").iterdir()} == set(OUTPUTS)
