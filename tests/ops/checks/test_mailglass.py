"""Links that our rule would not make, on tables of each version of Mailglass."""

import time

import pytest

import factories
import raw_webhooks
from diagnosing import of
from mailglass_reconcile import reconcile
from mailglass_reconcile.ops.checks import OK, WARNING

TO, CC = "to@example.com", "cc@example.com"


def bounce(db, recipient, **more):
    """Store a Postmark bounce of a recipient as Mailglass does; return the event's id."""
    raw = {**raw_webhooks.payload("postmark", "bounced"), "Email": recipient}
    event = {"provider_event_id": "Bounce:4", "record_type": "Bounce", "message_id": raw["MessageID"]}
    [event_id] = raw_webhooks.store(db, "postmark", raw, [event], raw_id="Bounce:4", **more)
    return event_id, raw["MessageID"]


def link(db, orphan, delivery, **metadata):
    """Link them as Mailglass's own reconciler would."""
    row = factories.reconciled_row(orphan, delivery, id=raw_webhooks.uuid7(time.time()))
    factories.insert(db, events=[row])
    db.broken.update({"I1", "I2", "I5"})


def test_links_of_our_own_are_those_that_the_rule_makes(beside):
    """With a recipient that was read, and with one that could not be."""
    _, message_id = bounce(beside, TO)
    factories.delivery(beside, message_id, recipient=TO)
    assert reconcile().linked == 1
    assert of("links").status == OK


@pytest.mark.parametrize(
    ("whose", "columns"),
    [
        ("another tenant's (1) or recipient's (0)", {"tenant_id": "other"}),
        ("another tenant's (0) or recipient's (1)", {"recipient": CC}),
    ],
)
def test_a_link_to_another_tenant_s_or_recipient_s_delivery_is_reported(beside, whose, columns):
    """Mailglass's reconciler looks at neither."""
    orphan, message_id = bounce(beside, TO)
    link(beside, orphan, factories.delivery(beside, message_id, **{"recipient": TO, **columns}))
    found = of("links")
    assert (found.status, whose in found.message) == (WARNING, True)


def test_a_recipient_that_cannot_be_read_is_no_fault(beside):
    """Then the message id alone decides, here too."""
    orphan, message_id = bounce(beside, TO, kept=False)
    link(beside, orphan, factories.delivery(beside, message_id, recipient=CC))
    assert of("links").status == OK
