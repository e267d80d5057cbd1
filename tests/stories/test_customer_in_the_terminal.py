"""A customer on the phone: from an address to the right command in the terminal; the address is stored nowhere."""

import logging
import re
import shlex

import pytest

import commands
import factories
import mailglass_reconcile
from mailglass_reconcile import Sent, record_send
from recording import event, record

pytestmark = pytest.mark.version_independent

CANARY = "canary.lovelace@bücher.example"
LASTING_TABLES = ("mailglass_reconcile_runs", "mailglass_events", "mailglass_handler_outbox")


class Operator:
    """Types an address, runs the commands that are shown, and keeps all output."""

    def __init__(self, db):
        self.db, self.output = db, ""

    def find(self, *options):
        """Search for the address, and return the commands that are shown."""
        return self.read(commands.run_unchecked(self.db, "find", "-", *options, stdin=f"{CANARY}\n"))

    def paste(self, command):
        """Run a command as it was shown, and return the commands that it shows."""
        program, *arguments = shlex.split(command)
        assert program == "mailglass-reconcile"
        return self.read(commands.run_unchecked(self.db, *arguments))

    def read(self, result):
        """Keep a command's output, and return the commands in it."""
        self.output += result.stdout + result.stderr
        return re.findall(r"mailglass-reconcile [^`\n]*[^`\n:]", result.stdout)


@pytest.fixture
def operator(db, caplog):
    """An operator; at the end, the address is in no log, output or history, and not in the ledger."""
    with caplog.at_level(logging.DEBUG):
        operator = Operator(db)
        yield operator
    stored = "".join(str(db.rows(f"SELECT t::text FROM {table} AS t")) for table in LASTING_TABLES)  # noqa: S608
    for text in (operator.output, caplog.text, stored):
        assert "canary" not in text.lower()


def record_customer_send(db, **more):
    """Record a send to the customer, and return its delivery."""
    with db.begin() as connection:
        arguments = {"tenant_id": "acme", "provider": "postmark", "sent": [Sent(recipient=CANARY, message_id="m-1")]}
        (recorded,) = record_send(connection, **{**arguments, **more})
    return str(recorded.delivery_id)


def test_an_event_was_stored_under_another_tenant(db, operator):
    """The delivery leads to the event that names it, and the event to how the webhook is sent again."""
    delivery = record_customer_send(db)
    with db.begin() as connection:
        (orphan,) = record(connection, event(type_="bounced", recipient=CANARY), tenant_id="globex")
    suggested = operator.find()
    assert sorted(suggested) == sorted(f"mailglass-reconcile explain {id_}" for id_ in (delivery, orphan.event_id))
    (further, *_) = operator.paste(f"mailglass-reconcile explain {delivery}")
    assert "1 open event of tenant globex names its message id" in operator.output
    assert further == f"mailglass-reconcile explain {orphan.event_id}"
    (remedy,) = operator.paste(further)
    assert "Route these webhooks to tenant acme" in operator.output
    assert remedy.startswith("mailglass-reconcile trigger postmark bounced --message-id m-1")


def test_a_send_was_never_recorded(db, operator):
    """The webhook has come and is open; the remedy is to store the delivery or to link it manually."""
    with db.begin() as connection:
        (orphan,) = record(connection, event(recipient=CANARY))
    (command,) = operator.find()
    assert command == f"mailglass-reconcile explain {orphan.event_id}"
    operator.paste(command)
    assert "a sweep now would find it unmatched" in operator.output
    assert "store a delivery of the event's tenant under one of these ids" in operator.output
    assert f"`mailglass-reconcile link {orphan.event_id} DELIVERY_ID --reason ''`" in operator.output


def test_a_database_that_refuses_does_not_show_the_address(db, operator):
    record_customer_send(db)
    db.run("ALTER TABLE mailglass_deliveries RENAME COLUMN mailable TO mailed")
    try:
        assert operator.find() == []
        assert operator.output.count("\n") == 1
    finally:
        db.run("ALTER TABLE mailglass_deliveries RENAME COLUMN mailed TO mailable")


def test_a_sweep_and_the_list_of_orphans_do_not_show_it_either(db, operator):
    with db.begin() as connection:
        record(connection, event(recipient=CANARY))
    operator.read(commands.run(db, "orphans", "--recipient", "-", stdin=CANARY))
    assert "1 orphan; " in operator.output
    operator.read(commands.run(db, "sweep", "--dry-run", "--verbose"))
    mailglass_reconcile.reconcile()
    operator.read(commands.run(db, "status"))
    assert factories.TENANT in operator.output
