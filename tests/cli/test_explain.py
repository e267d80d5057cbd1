"""`mailglass-reconcile explain` as a process."""

import re

import pytest

import commands
import factories
import mailglass_reconcile

pytestmark = pytest.mark.version_independent

WEEK = 7 * 86_400
_DELIVERY = "SELECT id FROM mailglass_deliveries WHERE provider_message_id = 'one'"


def test_each_state_conforms_to_the_schema_and_is_escaped(db):
    """Control characters of a row never reach the terminal, and no address is shown."""
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
        "attached": factories.orphan(
            db, factories.postmark("one"), needs_reconciliation=False, delivery_id=db.value(_DELIVERY)
        ),
        "no_orphan": factories.orphan(db, {}, needs_reconciliation=False),
    }
    for state, event in events.items():
        result = commands.conforming("explain", commands.run_here("explain", event, "--json").stdout)[0]
        assert (result["event_id"], result["state"]) == (event, state)
        stdout = commands.run_here("explain", event).stdout
        assert f"{event}: {state}\n" in stdout
        has_delivery = state in ("linked", "matched", "waiting", "expired", "attached")
        assert stdout.startswith(("delivered", "dispatched", "last reported")) == has_delivery
        assert ("fields searched" in stdout) == (state not in ("attached", "no_orphan"))
        assert all(line.isprintable() or not line for line in stdout.splitlines()), stdout
        assert "example.com" not in stdout


def test_lines_are_wrapped_for_a_terminal_and_never_in_a_pipe(db):
    """A terminal gets at most 80 columns; in a pipe each fact is one line."""
    factories.delivery(db, "one", tenant_id="other")
    event = factories.orphan(db, factories.postmark("one"))
    fact = max(commands.run_here("explain", event).stdout.splitlines(), key=len)
    words = fact.partition("`")[0]  # a command is a line of its own on a terminal
    assert len(words) > 80
    output = commands.run_on_terminal(db, "explain", event)
    assert words not in output
    assert " ".join(words.split()) in " ".join(output.split())
    assert max(len(line) for line in output.splitlines() if not line.startswith("mailglass-reconcile ")) <= 80


def test_it_begins_with_a_verdict_on_the_delivery_and_lists_linked_events_first(db):
    """The argument may be a delivery or a message id; open events come last."""
    delivery = factories.delivery(db, "m-1", last_event_type="delivered", terminal=True)
    linked = factories.orphan(db, factories.postmark("m-1"), type="opened")
    mailglass_reconcile.reconcile()
    waiting = factories.orphan(db, factories.postmark("m-1"), type="clicked", age_seconds=-200)
    for arguments in ((delivery,), ("--message-id", "m-1")):
        stdout = commands.run_here("explain", *arguments).stdout
        first, _, events = stdout.partition("\n\n")
        verdict, state = first.splitlines()
        assert verdict == "opened, 5 minutes ago"
        assert re.fullmatch(rf"delivery {delivery}: opened since \d{{4}}-.* UTC \(.* ago\), final", state), stdout
        assert events.startswith(f"{linked}: linked\n")
        assert events.find(f"{waiting}: waiting\n") > 0
        document = commands.conforming("explain", commands.run_here("explain", *arguments, "--json").stdout)
        assert [row["event_id"] for row in document] == [linked, waiting]
        assert (document[0]["delivery"]["type"], document[0]["delivery"]["final"]) == ("opened", True)
        assert (document[0]["delivery"]["summary"], document[0]["delivery"]["command"]) == (verdict, None)
    unreported = factories.delivery(db, "m-2")
    stdout = commands.run_here("explain", unreported).stdout
    assert f"delivery {unreported}: dispatched since" in stdout
    assert "no event is linked to it, and no open event has its message id" in stdout
    [row] = commands.conforming("explain", commands.run_here("explain", unreported, "--json").stdout)
    assert (row["event_id"], row["delivery_id"], row["delivery"]["type"]) == (None, unreported, "dispatched")


def test_a_person_reads_where_the_ids_come_from_and_what_has_to_change(db):
    """It shows the fields searched and their ids, the deliveries with such an id, and the time of the next sweep."""
    delivery = factories.delivery(db, "one", tenant_id="other", recipient="grace@example.com")
    event = factories.orphan(db, factories.postmark("one", recipient="ada@example.com"))
    stdout = commands.run_here("explain", event).stdout
    for words in (
        "type       delivered",
        "tenant     acme",
        "provider   postmark",
        "fields searched for a message id (rule postmark/2.1):",
        "  metadata/message_id: string",
        "  metadata/MessageID: nothing",
        "from metadata/message_id; names 1 delivery:",
        f"delivery {delivery}, of tenant other, to another",
        "because a stored event keeps its tenant",
        "next try   next full sweep; expires",
    ):
        assert words in stdout, stdout
    assert re.search(r"arrived    \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(5 minutes ago\)", stdout)
    waiting = factories.orphan(db, factories.postmark("none"), age_seconds=-200)
    stdout = commands.run_here("explain", waiting).stdout
    assert "would find it unmatched" in stdout
    assert re.search(r"next try   first full sweep after .* UTC \(in 4 minutes\)", stdout)


@pytest.mark.slow
def test_a_message_id_finds_its_open_and_its_linked_events(db):
    """The id matches in any spelling; an unknown id is exit code 1."""
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
    missing = commands.run_unchecked(db, "explain", "--message-id", "m-2")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "mailglass-reconcile: no open event and no delivery has this message id\n"
    assert commands.run_here("explain").exit_code == 2


def test_of_an_expired_event_it_does_not_say_that_no_webhook_has_arrived(db):
    factories.delivery(db, "m-1")
    event = factories.orphan(db, factories.postmark("m-1"), age_seconds=WEEK + 500)
    mailglass_reconcile.prune()
    (first, command, *_) = commands.run_here("explain", event).stdout.splitlines()
    assert first.endswith("; 1 expired event names its message id")
    assert command == f"  mailglass-reconcile explain {event}"


def test_a_mistyped_provider_is_named(db):
    """It has no rule, so its ids are searched where most providers put them."""
    event = factories.orphan(db, {"provider": "sendgird", "message_id": "m"})
    stdout = " ".join(commands.run_here("explain", event).stdout.split())
    assert "no rule knows sendgird; did you mean sendgrid?" in stdout
    assert "to link it correct the provider's name where this webhook is recorded" in stdout


def test_the_remedy_for_each_candidate_can_be_pasted(db):
    """Each command has what distinguishes its delivery; another tenant's delivery cannot be linked."""
    first, second = (factories.delivery(db, "many") for _ in range(2))
    db.run("UPDATE mailglass_deliveries SET mailable = 'Invoice' WHERE id = CAST(:id AS uuid)", id=second)
    foreign = factories.delivery(db, "many", tenant_id="globex")
    event = factories.orphan(db, factories.postmark("many"))
    output = commands.run_on_terminal(db, "explain", event)
    for delivery, mailable in ((first, "Welcome"), (second, "Invoice")):
        assert f"mailglass-reconcile link {event} {delivery} --reason ''" in output.splitlines()
        assert f"      {mailable}, dispatched, stored " in output
    assert f"{foreign} --reason" not in output
    assert "DELIVERY_ID" not in output
    assert "each delivery with such an id is listed with it" in " ".join(output.split())


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
