"""`mailglass-reconcile explain` as a process."""

import pytest

import commands
import factories
import mailglass_reconcile

pytestmark = pytest.mark.version_independent


def test_lines_are_wrapped_for_a_terminal_and_never_in_a_pipe(db):
    factories.delivery(db, "one", tenant_id="other")
    event = factories.orphan(db, factories.postmark("one"))
    fact = max(commands.run_here("explain", event).stdout.splitlines(), key=len)
    words = fact.partition("`")[0]  # a command is a line of its own on a terminal
    assert len(words) > 80
    output = commands.run_on_terminal(db, "explain", event)
    assert words not in output
    assert " ".join(words.split()) in " ".join(output.split())
    assert max(len(line) for line in output.splitlines() if not line.startswith("mailglass-reconcile ")) <= 80


def test_the_events_of_a_delivery_or_a_message_come_with_it_the_linked_ones_first(db):
    delivery = factories.delivery(db, "m-1", last_event_type="delivered", terminal=True)
    linked = factories.orphan(db, factories.postmark("m-1"), type="opened")
    mailglass_reconcile.reconcile()
    waiting = factories.orphan(db, factories.postmark("m-1"), type="clicked", age_seconds=-200)
    for arguments in ((delivery,), ("--message-id", "m-1")):
        document = commands.conforming("explain", commands.run_here("explain", *arguments, "--json").stdout)
        assert [row["event_id"] for row in document] == [linked, waiting]
        assert (document[0]["delivery"]["type"], document[0]["delivery"]["final"]) == ("opened", True)
        assert (document[0]["delivery"]["summary"], document[0]["delivery"]["command"]) == (
            "opened, 5 minutes ago",
            None,
        )
    unreported = factories.delivery(db, "m-2")
    [row] = commands.conforming("explain", commands.run_here("explain", unreported, "--json").stdout)
    assert (row["event_id"], row["delivery_id"], row["delivery"]["type"]) == (None, unreported, "dispatched")


@pytest.mark.slow
def test_a_message_id_finds_its_open_and_its_linked_events(db):
    """The id matches in any spelling."""
    factories.delivery(db, "m-1")
    linked = factories.orphan(db, {"provider": "ses", "mail": {"messageId": "m-1"}})
    mailglass_reconcile.reconcile()
    still_open = factories.orphan(
        db, {"provider": "ses", "mail": {"messageId": "m-1"}}, type="opened", age_seconds=-200
    )
    result = commands.run(db, "explain", "--json", "--message-id", "m-1@eu-west-1.amazonses.com")
    document = commands.conforming("explain", result.stdout)
    assert [(row["event_id"], row["state"]) for row in document] == [(linked, "linked"), (still_open, "waiting")]
    assert document[0]["delivery_id"] == db.value("SELECT id::text FROM mailglass_deliveries")


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("resend", "press Replay"),
        (
            "postmark",
            "`mailglass-reconcile trigger postmark delivered --message-id '<m@1>'`",
        ),
        ("sendgrid", "`receive(connection, 'sendgrid', body, headers, tenant_id='globex')`"),
        ("own", "`receive(connection, 'own', body, headers, tenant_id='globex')`"),
    ],
)
def test_a_tenant_mismatch_says_how_to_send_that_webhook_again(db, provider, words):
    factories.delivery(db, "<m@1>", tenant_id="globex")
    names = dict.fromkeys(("message_id", "sg_message_id", "email_id"), "<m@1>")
    event = factories.orphan(db, {"provider": provider, **names}, tenant_id="default")
    stdout = commands.run_here("explain", event).stdout
    assert "Route these webhooks to tenant globex" in stdout
    assert "Mailglass" not in stdout, "its tables are not here"
    assert words in stdout
