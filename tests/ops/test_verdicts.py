"""The verdict on a delivery: one sentence of what happened, and where to look next."""

import datetime as dt

import pytest

import factories
import mailglass_reconcile
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.ops import verdicts
from mailglass_reconcile.store.database import uuid7
from recording import event, record

RECIPIENT = "ada@example.com"


ago = dt.timedelta
"""How long ago, when the test begins."""


def as_stored(value):
    """Return the time that was so long ago, as rows have it; any other value as it is."""
    if not isinstance(value, dt.timedelta):
        return value
    return str((dt.datetime.now(dt.UTC) - value).replace(tzinfo=None))


def verdict(db, delivery_id):
    """Return the verdict on a delivery."""
    with db.database.reading() as tx:
        return verdicts.of(tx, [delivery_id])[delivery_id]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"last_event_at": ago(hours=30), "provider": "postmark"},
            "dispatched 30 hours ago, no webhook has arrived: look at Postmark's log, and whether its webhook is set up"
            " and enabled",
        ),
        (
            {"last_event_at": ago(days=3)},
            "dispatched 3 days ago, no webhook has arrived: look at your provider's log, and whether its webhook is"
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
            "queued 3 hours ago, and not sent yet: look at the log of the process that sends",
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
    """With the time that has passed, and the provider's name as it writes it."""
    stored = {"message_id": "m-1", **{name: as_stored(value) for name, value in columns.items()}}
    delivery = factories.delivery(db, **stored)
    assert verdict(db, delivery) == (sentence, None)


@pytest.mark.parametrize("attached", [True, False])
def test_a_bounce_has_its_kind_its_codes_and_its_reason(db, attached):
    """Whether its webhook was stored with the delivery or linked to it later."""
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
    assert verdict(db, str(sent.delivery_id)).sentence == expected


def test_a_reason_of_another_writer_that_holds_an_address_is_left_out(db):
    """The ledger may hold anything."""
    delivery = factories.delivery(db, "m-1", last_event_type="bounced", last_event_at=as_stored(ago(hours=1)))
    row = factories.orphan_row(
        factories.postmark("m-1"),
        type="bounced",
        delivery_id=delivery,
        needs_reconciliation=False,
        reject_reason="no such user: ada@example.com",
    )
    factories.insert(db, events=[row])
    assert verdict(db, delivery).sentence == "bounced, 1 hour ago"


def test_a_webhook_that_reports_no_end_is_no_silence(db):
    """Such as that of a provider which has queued the message."""
    delivery = factories.delivery(db, "m-1", provider="sendgrid", last_event_at=as_stored(ago(hours=3)))
    row = factories.orphan_row(
        factories.sendgrid("m-1"), type="queued", delivery_id=delivery, needs_reconciliation=False
    )
    factories.insert(db, events=[row])
    assert verdict(db, delivery).sentence == (
        "dispatched 3 hours ago, as the last webhook says: look at SendGrid's log"
    )


def test_an_open_event_of_another_tenant_that_names_the_message_is_shown(db):
    """With the command that explains it; one about another recipient does not count."""
    delivery = factories.delivery(db, "m-1", last_event_at=as_stored(ago(hours=3)), recipient="Ada@Example.com")
    with db.begin() as connection:
        record(connection, event(recipient="bob@example.com"), tenant_id="globex")
    assert "no webhook has arrived" in verdict(db, delivery).sentence
    with db.begin() as connection:
        (own,) = record(connection, event(recipient=RECIPIENT, provider_event_id="2"), tenant_id="globex")
    assert verdict(db, delivery) == (
        "dispatched 3 hours ago; 1 open event of tenant globex names its message id",
        f"mailglass-reconcile explain {own.event_id}",
    )


def test_ten_thousand_events_of_one_delivery_cost_two_hundred(db):
    """The latest."""
    delivery = factories.delivery(db, "m-1", last_event_type="opened", last_event_at=as_stored(ago(hours=1)))
    row = factories.orphan_row({}, type="opened", delivery_id=delivery, needs_reconciliation=False, age_seconds=3_600)
    factories.insert(db, events=[{**row, "id": uuid7()} for _ in range(1_000)])
    with db.database.reading() as tx:
        parameters = {"ids": f"{{{delivery}}}", "latest": verdicts.LATEST}
        text = "\n".join(tx.execute(f"EXPLAIN (ANALYZE) {verdicts._FACTS}", parameters).scalars())
    assert "rows=1000 " not in text
    mailglass_reconcile.reconcile()
