"""Sends and webhooks of Anymail's providers in Postgres: deliveries end the same in any order."""

import re
import textwrap

import pytest
from anymail.signals import post_send, tracking
from django.dispatch import receiver

import mailglass_reconcile
from anymail_sends import ANN, BOB, STORY, Message
from anymail_webhooks import ALL, POSTMARK, RESEND, SENDGRID, SES
from mailglass_reconcile import record_webhook
from mailglass_reconcile.contrib import anymail
from mailglass_reconcile.contrib.anymail import webhook_event

pytestmark = [
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support"),
    pytest.mark.python_dependent,
]


@pytest.fixture
def record(db, post, backends):
    """Post requests, record each event in a transaction of its own, and return what was recorded."""

    def record(requests):
        recorded = []
        for event, esp_name in post(requests):
            with db.engine.begin() as connection:
                events = [webhook_event(event, esp_name)]
                recorded += record_webhook(connection, provider=esp_name, events=events)
        return recorded

    return record


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(provider, id=provider.esp_name, marks=[] if provider is SENDGRID else pytest.mark.nightly)
        for provider in ALL
    ],
)
def test_deliveries_end_the_same_whatever_came_first_and_however_often(db, record, provider):
    """The send comes first, the webhooks come first, or some come before and some after, backwards; then all are
    repeated.
    """
    to = [ANN] if provider is RESEND else [ANN, BOB]
    after, before, between = (Message.send_accepted(provider, number, to) for number in (1, 2, 3))
    after.record(db)
    record(after.requests(*STORY))
    recorded = record(before.requests(*STORY))
    assert before.record(db) == len(recorded)
    record(between.requests(*STORY[::-2]))
    between.record(db)
    record(between.requests(*STORY[-2::-2]))

    expected = after.deliveries(db)
    assert before.deliveries(db) == between.deliveries(db) == expected
    assert [(row["recipient"], row["last_event_type"], row["bounced_at"] is not None) for row in expected] == [
        (ANN, "clicked", False),
        (BOB, "bounced", True),
    ][: len(to)]
    reported_for_ann = [type_ for type_, recipient, _ in STORY if recipient == ANN and type_ in provider.types]
    assert expected[0]["events"] == ["dispatched", *reported_for_ann]
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0

    ledger = db.value("SELECT count(*) FROM mailglass_events")
    for message in (after, before, between):
        repeated = record(message.requests(*STORY))
        assert {event.event_id for event in repeated} == {None}
        message.record(db)
    assert db.value("SELECT count(*) FROM mailglass_events") == ledger
    assert before.deliveries(db) == between.deliveries(db) == after.deliveries(db) == expected


def test_an_open_that_ses_reports_is_recorded_for_all_and_a_delivery_for_whom_it_names(db, record):
    """SES does not say which of several recipients opened a message, but which it was delivered to."""
    message = Message.send_accepted(SES, 1)
    delivered = SES.event("delivered", message.ids[ANN], ANN, 10)
    delivered["mail"]["destination"] = [f"Ann <{ANN}>", BOB]
    record(SES.requests([delivered, SES.event("opened", message.ids[ANN], [f"Ann <{ANN}>", BOB], 20)]))
    assert message.record(db) == 3
    assert [delivery["events"] for delivery in message.deliveries(db)] == [
        ["dispatched", "delivered", "opened"],
        ["dispatched", "opened"],
    ]


def test_an_event_of_resend_about_one_of_several_recipients_stays_open(db, record):
    """It may be about either of them."""
    message = Message.send_accepted(RESEND, 1)
    bounced = RESEND.event("bounced", message.ids[ANN], [ANN, BOB], 10)
    (early,) = record(RESEND.requests([bounced]))
    assert message.record(db) == 0
    (late,) = record(RESEND.requests([RESEND.event("bounced", message.ids[ANN], [ANN, BOB], 20)]))
    assert (early.delivery_id, late.delivery_id) == (None, None)
    assert [delivery["last_event_type"] for delivery in message.deliveries(db)] == ["dispatched", "dispatched"]


def test_the_receivers_of_the_docstring_record_what_is_sent_and_what_happens(db, post, backends):
    printed = textwrap.dedent("".join(re.findall(r"^(?: {4}.*)?\n", anymail.__doc__, re.MULTILINE)))
    names = ("MailglassReconcileError", "broadcast", "record_send", "record_webhook")
    receivers = {**vars(anymail), **{name: getattr(mailglass_reconcile, name) for name in names}, "engine": db.engine}
    receivers |= {"receiver": receiver, "post_send": post_send, "tracking": tracking}
    exec(printed, receivers)  # noqa: S102
    try:
        message = Message.send_accepted(POSTMARK, 1)
        post(message.requests(*STORY))
    finally:
        post_send.disconnect(receivers["record_sent"])
        tracking.disconnect(receivers["record_tracking"])
    assert [delivery["last_event_type"] for delivery in message.deliveries(db)] == ["clicked", "bounced"]
