"""A delivery for people: one sentence of what happened, where to look next, and its events."""

import datetime as dt
import json

import pytest

import commands
import factories
import mailglass_reconcile
import meter
from browsing import Visitor, app
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.ops import deliveries
from mailglass_reconcile.store.database import uuid7
from recording import event, record

pytestmark = pytest.mark.version_independent

RECIPIENT = "ada@example.com"


ago = dt.timedelta
"""How long ago, when the test begins."""


def format_as_stored(value):
    """Format the time that was so long ago as rows have it; return any other value unchanged."""
    if not isinstance(value, dt.timedelta):
        return value
    return str((dt.datetime.now(dt.UTC) - value).replace(tzinfo=None))


def summary(db, delivery_id):
    """Return the summary of a delivery, and the command that it suggests."""
    with db.database.reading() as tx:
        (delivery,) = deliveries.load_deliveries(tx, [delivery_id])
    return delivery.summary, delivery.command


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"last_event_at": ago(hours=30), "provider": "postmark"},
            "dispatched 30 hours ago, no webhook has arrived: check Postmark's log, and whether its webhook is set up"
            " and enabled",
        ),
        (
            {"last_event_at": ago(days=3)},
            "dispatched 3 days ago, no webhook has arrived: check your provider's log, and whether its webhook is"
            " set up and enabled",
        ),
        ({"last_event_at": ago(minutes=2, seconds=1)}, "dispatched 2 minutes ago, no webhook has arrived yet"),
        (
            {"last_event_at": ago(hours=3), "message_id": None},
            "dispatched 3 hours ago without a message id, so no webhook can be linked to it: record the id with the"
            " send",
        ),
        (
            {"last_event_at": ago(hours=3), "last_event_type": "queued"},
            "queued 3 hours ago, and not sent yet: check the log of the process that sends",
        ),
        (
            {"last_event_at": ago(hours=3), "last_event_type": "delivered", "terminal": True},
            "delivered, 3 hours ago: the recipient's mail server accepted it",
        ),
        (
            {"last_event_at": ago(hours=1), "last_event_type": "opened", "delivered_at": ago(hours=3)},
            "opened 1 hour ago, delivered 3 hours ago",
        ),
        ({"last_event_at": "infinity", "last_event_type": "rejected"}, "rejected, at an unknown time"),
    ],
)
def test_what_the_row_shows_is_one_sentence(db, columns, sentence):
    stored = {"message_id": "m-1", **{name: format_as_stored(value) for name, value in columns.items()}}
    delivery = factories.delivery(db, **stored)
    assert summary(db, delivery) == (sentence, None)


@pytest.mark.parametrize("attached", [True, False])
def test_a_bounce_has_its_kind_its_codes_and_its_reason(db, attached):
    at = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2, seconds=1)
    bounced = event("m-1", "bounced", bounce="hard", smtp_status="550 5.1.1", reject_reason="invalid", occurred_at=at)
    if not attached:
        with db.begin() as connection:
            record(connection, bounced)
    with db.begin() as connection:
        sends = [Sent(recipient=RECIPIENT, message_id="m-1")]
        (sent,) = record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sends)
    if attached:
        with db.begin() as connection:
            record(connection, bounced)
    expected = "bounced, hard, 550 5.1.1, reason invalid, 2 hours ago"
    assert summary(db, str(sent.delivery_id))[0] == expected


def test_a_reason_of_another_writer_that_holds_an_address_is_left_out(db):
    """Another writer may store anything in the ledger."""
    delivery = factories.delivery(db, "m-1", last_event_type="bounced", last_event_at=format_as_stored(ago(hours=1)))
    row = factories.orphan_row(
        factories.postmark("m-1"),
        type="bounced",
        delivery_id=delivery,
        needs_reconciliation=False,
        reject_reason="no such user: ada@example.com",
    )
    factories.insert(db, events=[row])
    assert summary(db, delivery)[0] == "bounced, 1 hour ago"


def test_a_webhook_that_reports_no_end_is_no_silence(db):
    """A provider that has only queued the message has reported no end either."""
    delivery = factories.delivery(db, "m-1", provider="sendgrid", last_event_at=format_as_stored(ago(hours=3)))
    row = factories.orphan_row(
        factories.sendgrid("m-1"), type="queued", delivery_id=delivery, needs_reconciliation=False
    )
    factories.insert(db, events=[row])
    assert summary(db, delivery)[0] == ("last reported 3 hours ago: dispatched; check SendGrid's log")


def test_an_open_event_of_another_tenant_that_names_the_message_is_shown(db):
    delivery = factories.delivery(db, "m-1", last_event_at=format_as_stored(ago(hours=3)), recipient="Ada@Example.com")
    with db.begin() as connection:
        (orphan,) = record(connection, event(recipient="bob@example.com"), tenant_id="globex")
    assert summary(db, delivery) == (
        "dispatched 3 hours ago; 1 open event of tenant globex about another recipient names its message id",
        f"mailglass-reconcile explain {orphan.event_id}",
    )
    with db.begin() as connection:
        (own,) = record(connection, event(recipient=RECIPIENT, provider_event_id="2"), tenant_id="globex")
    assert summary(db, delivery) == (
        "dispatched 3 hours ago; 1 open event of tenant globex names its message id",
        f"mailglass-reconcile explain {own.event_id}",
    )


def test_ten_thousand_events_of_one_delivery_cost_two_hundred(db):
    delivery = factories.delivery(db, "m-1", last_event_type="opened", last_event_at=format_as_stored(ago(hours=1)))
    row = factories.orphan_row({}, type="opened", delivery_id=delivery, needs_reconciliation=False, age_seconds=3_600)
    factories.insert(db, events=[{**row, "id": uuid7()} for _ in range(1_000)])
    with db.database.reading() as tx:
        parameters = {"ids": f"{{{delivery}}}", "latest": deliveries.MAX_EVENTS}
        plan = meter.plan_of(tx, lambda: tx.execute(deliveries._READ, parameters).all())
    assert 0 < plan.most < 1_000
    mailglass_reconcile.reconcile()


def test_the_latest_events_come_first_everywhere(db):
    """`explain` showed the oldest twenty, and hid a complaint after thirty opens."""
    delivery = factories.delivery(db, "m-1", last_event_type="complained", terminal=True)
    at = [f"2026-11-01 10:{minute:02}" for minute in range(30)]
    row = factories.orphan_row({}, type="opened", delivery_id=delivery, needs_reconciliation=False)
    rows = [{**row, "id": uuid7(), "occurred_at": time} for time in at]
    complained = {**row, "id": uuid7(), "type": "complained", "occurred_at": "2026-11-02 10:00"}
    factories.insert(db, events=[*rows, complained])
    stdout = commands.run_here("explain", delivery).stdout
    assert stdout.index(complained["id"]) < stdout.index(rows[-1]["id"])
    assert rows[0]["id"] not in stdout
    page = Visitor(app(db)).get(f"/deliveries/{delivery}").text
    assert page.index(complained["id"]) < page.index(rows[-1]["id"]) < page.index(rows[0]["id"])
    db.broken.update({"I2", "I7"})


@pytest.mark.parametrize("columns", [{}, {"provider": None}])
def test_terminal_json_and_dashboard_say_the_same_of_a_delivery(db, columns):
    with db.begin() as connection:
        sends = [Sent(recipient=RECIPIENT, message_id="m-1")]
        (sent,) = record_send(connection, tenant_id=factories.TENANT, provider="sendgrid", sent=sends)
    delivery = str(sent.delivery_id)
    if columns:
        db.run("UPDATE mailglass_deliveries SET provider = NULL")
    with db.begin() as connection:
        (orphan,) = record(connection, event("m-1", recipient="bob@example.com"), provider="sendgrid")
    sentence = "1 open event about another recipient names its message id"
    terminal = [commands.run_here("find", RECIPIENT).stdout, commands.run_here("explain", delivery).stdout]
    visitor = Visitor(app(db))
    pages = [visitor.get(f"/deliveries/{delivery}").text, visitor.ask("POST", "/find", data={"q": RECIPIENT}).text]
    hits = [json.loads(line) for line in commands.run_here("find", "--json", RECIPIENT).stdout.splitlines()]
    (hit,) = [hit for hit in hits if hit["id"] == delivery]
    assert all(sentence in text for text in (*terminal, *pages, hit["summary"]))
    assert hit["provider"] == "sendgrid"
    assert str(orphan.event_id) in terminal[1]
    assert not any("no webhook has arrived" in text for text in (*terminal, *pages))
    db.broken.update({"I2", "I3", "I7"})
