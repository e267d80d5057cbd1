"""`mailglass-reconcile explain` as a process."""

import re

import pytest

import commands
import factories
import mailglass_reconcile

WEEK = 7 * 86_400


def test_each_state_conforms_to_the_schema_and_reads_in_80_columns(db):
    """Nothing of a row steers the terminal, and no address is shown."""
    linked = factories.orphan(db, factories.postmark("linked"))
    factories.delivery(db, "linked")
    mailglass_reconcile.reconcile()
    factories.delivery(db, "one", recipient="grace@example.com")
    for _ in range(2):
        factories.delivery(db, "many")
    events = {
        "linked": linked,
        "matched": factories.orphan(db, factories.postmark("one")),
        "unmatched": factories.orphan(db, factories.postmark("\u001b[2J"[1:] + "\u202e"), type="odd\u202e"),
        "unmatchable": factories.orphan(db, {"provider": "postmark", "message_id": 1.5}, tenant_id="t\u202e"),
        "ambiguous": factories.orphan(db, factories.postmark("many")),
        "recipient_mismatch": factories.orphan(db, factories.postmark("one", recipient="ada@example.com")),
        "tenant_mismatch": factories.orphan(db, factories.postmark("one"), tenant_id="other"),
        "waiting": factories.orphan(db, factories.postmark("one"), age_seconds=-200),
        "expired": factories.orphan(db, factories.postmark("one"), age_seconds=WEEK + 500),
        "no_orphan": factories.orphan(db, {}, needs_reconciliation=False),
    }
    for state, event in events.items():
        found = commands.conforming("explain", commands.inside("explain", event, "--json").stdout)[0]
        assert (found["event_id"], found["state"]) == (event, state)
        said = commands.inside("explain", event).stdout
        assert said.startswith(f"{event}: {state}\n")
        assert all(len(line) <= 80 and (line.isprintable() or not line) for line in said.splitlines()), said
        assert "example.com" not in said


def test_a_person_reads_where_the_ids_come_from_and_what_has_to_change(db):
    """The places read, what they hold, which deliveries are named, and when a sweep looks next."""
    delivery = factories.delivery(db, "one", tenant_id="other", recipient="grace@example.com")
    event = factories.orphan(db, factories.postmark("one", recipient="ada@example.com"))
    said = commands.inside("explain", event).stdout
    for words in (
        "type       delivered",
        "tenant     acme",
        "provider   postmark",
        "places read for an id (rule postmark/1.1):",
        "  metadata/message_id: string",
        "  metadata/MessageID: nothing",
        "from metadata/message_id; names 1 delivery:",
        f"delivery {delivery}, of tenant other, to another",
        "event and delivery need the same tenant",
        "next look  by the next full sweep, and by each one until",
    ):
        assert words in said, said
    assert re.search(r"arrived    \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(5 minutes ago\)", said)
    waiting = factories.orphan(db, factories.postmark("none"), age_seconds=-200)
    said = commands.inside("explain", waiting).stdout
    assert "would find it unmatched" in said
    assert re.search(r"next look  by the first full sweep after .* UTC \(in 4 minutes\)", said)


@pytest.mark.slow
def test_a_message_id_finds_its_open_and_its_linked_events(db):
    """In any spelling; an id that nothing has is exit code 1."""
    factories.delivery(db, "m-1")
    linked = factories.orphan(db, {"provider": "ses", "mail": {"messageId": "m-1"}})
    mailglass_reconcile.reconcile()
    still_open = factories.orphan(
        db, {"provider": "ses", "mail": {"messageId": "m-1"}}, type="opened", age_seconds=-200
    )
    done = commands.run(db, "explain", "--json", "--message-id", "m-1@eu-west-1.amazonses.com")
    found = commands.conforming("explain", done.stdout)
    assert [(one["event_id"], one["state"]) for one in found] == [(still_open, "waiting"), (linked, "linked")]
    assert found[1]["delivery_id"] == db.value("SELECT id::text FROM mailglass_deliveries")
    missing = commands.tried(db, "explain", "--message-id", "m-2")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "Error: no open orphan and no delivery has this message id\n"
    assert commands.inside("explain").exit_code == 2
