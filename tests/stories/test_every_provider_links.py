"""From an event of a provider's real shape and a delivery stored from the answer to its send, to a link."""

from typing import NamedTuple

import pytest

import factories
import mailglass_reconcile
from factories import delivery_row, orphan_row

pytestmark = pytest.mark.version_independent

GUID = "883953f4-6105-42a2-a16a-77a8eac79483"
SES_ID = "010001679a55ab63-e87ab0a6-f2de-4e93-b0b1-8c2cf9e3a8b2-000000"
MAIL = {"tags": [], "opened": None, "timestamp": 1769000000.25, "nested": {"a": [1, 2]}}


class Case(NamedTuple):
    """The provider's answer to a send, and its webhook."""

    sent: str
    event: dict[str, object]


LINKED = {
    "postmark": Case(GUID, factories.postmark(GUID)),
    "postmark in upper case": Case(GUID, factories.postmark(GUID.upper())),
    "postmark bounce": Case(
        GUID,
        {"provider": "postmark", "RecordType": "Bounce", "ID": 4323372036854775807, "MessageID": GUID, "TypeCode": 1},
    ),
    "sendgrid filter": Case(
        "evEK_IhZSlKus235aGfxIQ",
        factories.sendgrid("evEK_IhZSlKus235aGfxIQ.filter0361p1las1-11880-5978131E-23.0"),
    ),
    "sendgrid filterdrecv": Case(
        "tC4LGVjZTgi116GN5ZRO6Q",
        factories.sendgrid("tC4LGVjZTgi116GN5ZRO6Q.filterdrecv-p3iad2-5dc87598f5-bvh7w-20-5FB44F45-3E.0"),
    ),
    "sendgrid recvd": Case(
        "yW5utel5TYuIBREiXJi7aA", factories.sendgrid("yW5utel5TYuIBREiXJi7aA.recvd-5f9ffdf494-9kc6l-1-673C6EB0-B.0")
    ),
    "sendgrid stfilter": Case(
        "5lFl7Fr1Rjme_EyzNNB_5A", factories.sendgrid("5lFl7Fr1Rjme_EyzNNB_5A.stfilter-015.5185.55F883172.0")
    ),
    "sendgrid legacy": Case(
        "14c5d75ce93.dfd.64b469", factories.sendgrid("14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0")
    ),
    "mailgun": Case(
        "<20260102030405.1.AAAA@mg.example.com>",
        {
            "provider": "mailgun",
            "signature": {"token": "t", "timestamp": "1769000000", "signature": "s"},
            "event-data": {
                "event": "delivered",
                "id": "CPgfbmQMTCKtHW6uIWtuVe",
                "message": {"headers": {"message-id": "20260102030405.1.AAAA@mg.example.com"}, "size": 512},
            },
        },
    ),
    "mailgun event data alone": Case(
        "<1.BBBB@mg.example.com>",
        {"provider": "mailgun", "id": "x", "message": {"headers": {"message-id": "1.BBBB@mg.example.com"}}},
    ),
    "mailgun legacy": Case(
        "<2.CCCC@mg.example.com>", {"provider": "mailgun", "event": "opened", "message-id": "<2.CCCC@mg.example.com>"}
    ),
    "mailgun legacy bounce": Case(
        "<3.DDDD@mg.example.com>", {"provider": "mailgun", "event": "bounced", "Message-Id": "<3.DDDD@mg.example.com>"}
    ),
    "amazon ses": Case(
        SES_ID,
        {"provider": "Amazon SES", "eventType": "Delivery", "mail": {"messageId": SES_ID, **MAIL}, "delivery": {}},
    ),
    "ses by its header": Case(SES_ID, {"provider": "ses", "message_id": f"<{SES_ID}@eu-west-1.amazonses.com>"}),
    "resend": Case(
        "4ef9a417-02e9-4d39-ad75-9611e0fcc33c",
        {
            "provider": "resend",
            "type": "email.delivered",
            "data": {
                "email_id": "4EF9A417-02E9-4D39-AD75-9611E0FCC33C",
                "message_id": "<111-222@email.example.com>",
                "to": ["ada@example.com"],
            },
        },
    ),
    "brevo": Case(
        "<202601020304.45678901234@smtp-relay.mailin.fr>",
        {
            "provider": "brevo",
            "event": "delivered",
            "id": 26224,
            "message-id": "202601020304.45678901234@smtp-relay.mailin.fr",
        },
    ),
    "brevo stored bare": Case(
        "202601020304.1@smtp-relay.mailin.fr",
        {"provider": "sendinblue", "message-id": "<202601020304.1@smtp-relay.mailin.fr>"},
    ),
    "sparkpost": Case(
        "65832150921904138",
        {
            "provider": "sparkpost",
            "msys": {
                "message_event": {
                    "type": "delivery",
                    "transmission_id": "65832150921904138",
                    "message_id": "000443ee14578172be22",
                }
            },
        },
    ),
    "sparkpost click": Case(
        "65832150921904139", {"provider": "sparkpost", "msys": {"track_event": {"transmission_id": 65832150921904139}}}
    ),
    "sparkpost flat": Case(
        "65832150921904140", {"provider": "sparkpost", "type": "bounce", "transmission_id": "65832150921904140"}
    ),
    "mailjet": Case(
        "1152921509114107599",
        {
            "provider": "mailjet",
            "event": "sent",
            "MessageID": 1152921509114107599,
            "Message_GUID": "1ab23cd4-e567-8901-2345-6789f0gh1i2j",
        },
    ),
    "mandrill": Case(
        "7761629e2ac94fd7b1a9e1a5a8e3d9f4",
        {
            "provider": "mandrill",
            "event": "send",
            "_id": "7761629e2ac94fd7b1a9e1a5a8e3d9f4",
            "msg": {"_id": "7761629e2ac94fd7b1a9e1a5a8e3d9f4", "state": "sent", "ts": 1769000000},
        },
    ),
    "anymail's mailersend": Case(
        "62fb66bef54a112e920b5493", {"provider": "MailerSend", "message_id": "62fb66bef54a112e920b5493"}
    ),
    "anymail's amazon ses": Case(SES_ID, {"provider": "Amazon SES", "message_id": SES_ID}),
    "a hand-made row": Case("hand-made", {"provider": "postmark", "provider_message_id": "hand-made"}),
}


def test_an_event_of_real_shape_is_linked(db):
    """Each provider has a tenant with one orphan, its delivery, and a delivery of another message."""
    deliveries, events, expected = [], [], {}
    for tenant_id, case in LINKED.items():
        sent = delivery_row(case.sent, tenant_id=tenant_id)
        deliveries += [sent, delivery_row("somebody else's", tenant_id=tenant_id)]
        events.append(orphan_row(case.event, tenant_id=tenant_id))
        expected[tenant_id] = sent["id"]
    factories.insert(db, deliveries, events)
    assert mailglass_reconcile.reconcile().linked == len(LINKED)
    linked = db.rows("SELECT tenant_id, delivery_id::text FROM mailglass_events WHERE type = 'reconciled'")
    assert dict(map(tuple, linked)) == expected


NOT_LINKED = {
    "postmark's bounce ID": (
        Case("4323372036854775807", {"provider": "postmark", "RecordType": "Bounce", "ID": 4323372036854775807}),
        "unmatchable",
    ),
    "postmark's other message": (Case(GUID, factories.postmark(GUID.replace("8", "9"))), "unmatched"),
    "sendgrid without an id": (
        Case("filter0093p1las1", factories.sendgrid("filter0093p1las1.9128.5717FB8127.0")),
        "unmatchable",
    ),
    "sendgrid with null": (Case("null", factories.sendgrid(None)), "unmatchable"),
    "sendgrid with empty": (Case("", factories.sendgrid("")), "unmatchable"),
    "sendgrid in another case": (
        Case(
            "evEK_IhZSlKus235aGfxIQ", factories.sendgrid("EVEK_IhZSlKus235aGfxIQ.filter0361p1las1-11880-5978131E-23.0")
        ),
        "unmatched",
    ),
    "sendgrid with an underscore for a letter": (
        Case(
            "evEKXIhZSlKus235aGfxIQ", factories.sendgrid("evEK_IhZSlKus235aGfxIQ.filter0361p1las1-11880-5978131E-23.0")
        ),
        "unmatched",
    ),
    "sendgrid's legacy id cut at its first dot": (
        Case("14c5d75ce93", factories.sendgrid("14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0")),
        "unmatched",
    ),
    "mailgun's event id": (
        Case(
            "CPgfbmQMTCKtHW6uIWtuVe",
            {"provider": "mailgun", "event-data": {"id": "CPgfbmQMTCKtHW6uIWtuVe", "message": {"headers": {}}}},
        ),
        "unmatchable",
    ),
    "amazon's SNS message": (
        Case(SES_ID, {"provider": "ses", "Type": "Notification", "MessageId": SES_ID, "mail": {}}),
        "unmatchable",
    ),
    "resend's header": (
        Case("<1@email.example.com>", {"provider": "resend", "data": {"message_id": "<1@email.example.com>"}}),
        "unmatchable",
    ),
    "resend's header where Mailglass stores the id": (
        Case("<1@email.example.com>", {"provider": "resend", "message_id": "<1@email.example.com>"}),
        "unmatchable",
    ),
    "resend's header beside its id": (
        Case(
            "<1@email.example.com>",
            {"provider": "resend", "data": {"email_id": GUID, "message_id": "<1@email.example.com>"}},
        ),
        "unmatched",
    ),
    "brevo's event id": (Case("26224", {"provider": "brevo", "id": 26224}), "unmatchable"),
    "sparkpost's message_id": (
        Case(
            "000443ee14578172be22",
            {"provider": "sparkpost", "msys": {"message_event": {"message_id": "000443ee14578172be22"}}},
        ),
        "unmatchable",
    ),
    "mailjet's UUID": (Case(GUID, {"provider": "mailjet", "Message_GUID": GUID, "MessageID": GUID}), "unmatchable"),
    "mailjet's number through a float": (
        Case("1152921509114107599", {"provider": "mailjet", "MessageID": 1152921509114107600}),
        "unmatched",
    ),
    "mandrill's header": (
        Case("<1@example.com>", {"provider": "mandrill", "msg": {"headers": {"Message-Id": "<1@example.com>"}}}),
        "unmatchable",
    ),
    "no provider": (Case("one", {"message_id": "one"}), "unmatchable"),
    "another provider's delivery": (Case("one", {"provider": "postmark", "message_id": "two"}), "unmatched"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "state"), NOT_LINKED.values(), ids=NOT_LINKED)
def test_an_id_of_another_namespace_is_no_key(db, case, state):
    """The delivery is stored under an id that must not be read, and the orphan stays open with a reason."""
    factories.delivery(db, case.sent)
    factories.orphan(db, case.event)
    result = mailglass_reconcile.reconcile()
    assert (result.linked, getattr(result, state)) == (0, 1)
