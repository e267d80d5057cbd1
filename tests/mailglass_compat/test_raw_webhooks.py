"""Recipients from raw webhooks, because Mailglass's ledger has none, for each provider that names them."""

import datetime as dt
from uuid import UUID

import pytest

import factories
import meter
import raw_webhooks
from commands import conforming, run_here
from mailglass_reconcile import Sent, WebhookEvent, attempt_link, find_orphans, reconcile, record_send, record_webhook
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.store.tables import runs
from mailglass_reconcile.sweep.reconciler import prepare
from marking import nightly_unless
from scraping import scrape, value

TO, CC = "to@example.com", "cc@example.com"
CHECKED = "SELECT metadata -> 'recipient_checked' FROM mailglass_events WHERE type = 'reconciled'"
LINKED = "SELECT delivery_id::text FROM mailglass_events WHERE type = 'reconciled'"


@pytest.fixture
def statements(mailglass_db):
    """Collect the statements that are sent."""
    with meter.statements(mailglass_db.engine) as sent:
        yield sent


def postmark(recipient, kind="bounced"):
    """Return a bounce of Postmark: the raw webhook, its events' metadata, the message id and the raw webhook's id."""
    raw = raw_webhooks.payload("postmark", kind)
    raw |= {"Email" if "Email" in raw else "Recipient": recipient}
    event = {"provider_event_id": "Bounce:4", "record_type": "Bounce", "message_id": raw["MessageID"]}
    return raw, [event], raw["MessageID"], "Bounce:4"


def sendgrid(recipient, kind="bounced"):
    """Return a batch of four of SendGrid, of which one is about the recipient."""
    example = raw_webhooks.payload("sendgrid", kind)
    raw = [{**example, "email": f"{n}@example.com", "sg_event_id": f"other{n}=="} for n in range(3)]
    raw.insert(1, {**example, "email": recipient, "sg_event_id": "mine=="})
    event = {"provider_event_id": "mine==", "event": "bounce", "sg_message_id": example["sg_message_id"]}
    return raw, [event], example["sg_message_id"].partition(".filter")[0], "other0=="


def mailgun(recipient, kind="bounced"):
    """Return a bounce of Mailgun."""
    data = {**raw_webhooks.payload("mailgun", kind), "recipient": recipient}
    bare = data["message"]["headers"]["message-id"]
    raw = {"signature": {"token": "t-1", "timestamp": "1", "signature": "s"}, "event-data": data}
    event = {"provider_event_id": "t-1", "record_type": "failed", "message_id": bare, "mailgun_event_id": data["id"]}
    return raw, [event], f"<{bare}>", "t-1"


def ses(recipient, kind="bounced"):
    """Return an event of SES."""
    notification = raw_webhooks.payload("ses", kind)
    event = {
        "provider_event_id": f"sns-1:{recipient}",
        "record_type": "Bounce",
        "message_id": notification["mail"]["messageId"],
        "sns_message_id": "sns-1",
        "ses_message_id": notification["mail"]["messageId"],
    }
    return notification, [event], notification["mail"]["messageId"], "sns-1"


def resend(recipient, kind="bounced"):
    """Return a bounce of Resend."""
    raw = raw_webhooks.payload("resend", kind)
    raw = {**raw, "id": "evt-1", "data": {**raw["data"], "to": [recipient]}}
    event = {"provider_event_id": "evt-1", "record_type": raw["type"], "message_id": raw["data"]["email_id"]}
    return raw, [event], raw["data"]["email_id"], "evt-1"


def count_linkable():
    """Return the number of events that a sweep would link, and how many by the message id alone."""
    [counts] = conforming("sweep", run_here("sweep", "--since", "1h", "--dry-run", "--json").stdout)
    return counts["linked"], counts["linked_unchecked"]


PROVIDERS = {"postmark": postmark, "sendgrid": sendgrid, "mailgun": mailgun, "ses": ses, "resend": resend}

QUICK = ("sendgrid", "ses")
"""Providers of which `make test` reads raw webhooks: one in batches, and one of whose events each has a row."""


@pytest.mark.parametrize("provider", nightly_unless(QUICK.__contains__, PROVIDERS))
@pytest.mark.parametrize("has_webhook_id", [True, False], ids=["since 1.0", "0.1.1"])
def test_a_bounce_of_the_cc_does_not_mark_the_delivery_of_the_to(mailglass_db, provider, has_webhook_id):
    """The raw webhook is found by its id or by the event's, which of a batch is the first one's."""
    raw, events, message_id, raw_id = PROVIDERS[provider](CC)
    if provider == "sendgrid":
        raw_id = "mine=="
    raw_webhooks.store(mailglass_db, provider, raw, events, raw_id=raw_id, has_webhook_id=has_webhook_id)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    result = reconcile()
    assert (result.linked, result.recipient_mismatch) == (0, 1)
    assert reconcile().recipient_mismatch == 1  # by what the first sweep has stored


@pytest.mark.parametrize("provider", nightly_unless(QUICK.__contains__, PROVIDERS))
@pytest.mark.parametrize("has_webhook_id", [True, False], ids=["since 1.0", "0.1.1"])
def test_a_bounce_of_the_to_is_linked_to_its_delivery_among_several_of_the_id(mailglass_db, provider, has_webhook_id):
    """Mailglass's delivery of the To and another writer's of the Cc have the id."""
    raw, events, message_id, raw_id = PROVIDERS[provider](f" {TO.upper()}")
    if provider == "sendgrid":
        raw_id = "mine=="
    raw_webhooks.store(mailglass_db, provider, raw, events, raw_id=raw_id, has_webhook_id=has_webhook_id)
    delivery = factories.delivery(mailglass_db, message_id, recipient=TO)
    factories.delivery(mailglass_db, message_id, recipient=CC)
    assert reconcile().linked == 1
    assert mailglass_db.value(LINKED) == delivery


def test_one_event_is_decided_as_a_sweep_decides(mailglass_db):
    raw, events, message_id, _ = postmark(CC)
    (event_id,) = raw_webhooks.store(mailglass_db, "postmark", raw, events)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    explanation = explain(mailglass_db.database, UUID(event_id))
    assert (explanation.state, explanation.recipient_known) == ("recipient_mismatch", True)
    assert [row.same_recipient for row in explanation.candidates] == [False]
    with mailglass_db.engine.connect() as connection:
        (orphan,) = find_orphans(connection)
        assert attempt_link(connection, orphan).state == "recipient_mismatch"


def test_an_id_that_names_many_deliveries_finds_the_recipient_of_a_raw_webhook(mailglass_db):
    """The id has more deliveries than are read whole."""
    raw, events, message_id, _ = sendgrid("7@example.com")
    raw_webhooks.store(mailglass_db, "sendgrid", raw, events)
    rows = [factories.delivery_row(message_id, recipient=f"{n}@example.com") for n in range(60)]
    factories.insert(mailglass_db, rows)
    assert reconcile().linked == 1
    assert mailglass_db.value(LINKED) == rows[7]["id"]


@pytest.mark.parametrize(
    "changed",
    [
        {"is_stored": False},
        {"raw_tenant_id": "other"},
        *(pytest.param({"raw": raw}, marks=pytest.mark.slow) for raw in ([], {"Recipient": 7}, "text")),
        {"raw": [{"email": CC, "sg_event_id": "mine=="}, {"email": TO, "sg_event_id": "mine=="}]},
        {"raw": [{"email": [TO, CC], "sg_event_id": "mine=="}]},
        {"raw": [{"email": None, "sg_event_id": "mine=="}, 7, None, ["mine=="]]},
    ],
)
def test_a_recipient_that_cannot_be_read_leaves_the_id_alone_to_decide(mailglass_db, changed):
    """The original does so too: the webhook is deleted, another tenant's, or about something else."""
    raw, events, message_id, raw_id = sendgrid(CC)
    raw_webhooks.store(mailglass_db, "sendgrid", **{"raw": raw, "events": events, "raw_id": raw_id, **changed})
    factories.delivery(mailglass_db, message_id, recipient=TO)
    assert reconcile().linked_unchecked == 1
    assert mailglass_db.rows(CHECKED) == [(False,)]


@pytest.mark.parametrize("provider", nightly_unless(QUICK.__contains__, PROVIDERS))
def test_only_a_link_by_the_id_alone_says_that_the_recipient_was_not_checked(mailglass_db, provider):
    raw, events, message_id, raw_id = PROVIDERS[provider](TO)
    raw_webhooks.store(mailglass_db, provider, raw, events, raw_id=raw_id)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    raw, events, _, raw_id = postmark(TO)
    alone = {**events[0], "message_id": "alone"}
    [unchecked] = raw_webhooks.store(mailglass_db, "postmark", raw, [alone], raw_id="gone", is_stored=False)
    factories.delivery(mailglass_db, "alone", recipient=TO)
    assert count_linkable() == (2, 1)
    for sweep in (prepare(dry_run=True), prepare()):
        result = sweep.run()
        assert (result.linked, result.linked_unchecked) == (2, 1)
        assert explain(mailglass_db.database, UUID(unchecked)).recipient_checked is False
    assert sorted(map(str, mailglass_db.rows(CHECKED))) == ["(False,)", "(None,)"]
    with mailglass_db.database.reading() as tx:
        counts = runs.sum_by_status(tx)[0].counts
    assert (counts["linked"], counts["linked_unchecked"]) == (2, 1)
    assert value(scrape(mailglass_db), "linked_unchecked_total") == 1


def test_links_of_our_writers_events_are_not_marked_as_unchecked(mailglass_db):
    """They store the recipient apart from the ledger, and whether there was one."""
    with mailglass_db.engine.begin() as connection:
        event = WebhookEvent(
            message_id="m-1", provider_event_id="e", type="opened", occurred_at=dt.datetime.now(dt.UTC)
        )
        record_webhook(connection, tenant_id=factories.TENANT, provider="postmark", events=[event])
    factories.delivery(mailglass_db, "m-1", recipient=TO)
    mailglass_db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '5 minutes'")
    assert count_linkable() == (1, 0)
    result = reconcile()
    assert (result.linked, result.linked_unchecked) == (1, 0)
    assert mailglass_db.rows(CHECKED) == [(None,)]


def test_a_send_that_links_by_the_id_alone_marks_it_as_unchecked_too(mailglass_db):
    """A sweep has stored the event's ids before."""
    raw, events, message_id, raw_id = postmark(TO)
    raw_webhooks.store(mailglass_db, "postmark", raw, events, raw_id=raw_id, is_stored=False)
    reconcile()
    with mailglass_db.engine.begin() as connection:
        sent = [Sent(recipient=TO, message_id=message_id)]
        [result] = record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)
    assert result.linked == 1
    assert mailglass_db.rows(CHECKED) == [(False,)]


def test_an_address_in_an_event_id_of_ses_is_not_copied_into_the_ledger(mailglass_db):
    """The appended row has the notification's id only; an id of another form is copied."""
    for recipient, ses_id in ((TO, "sns-1"), (CC, "sns-2")):
        raw, events, message_id, _ = ses(recipient)
        raw_webhooks.store(mailglass_db, "ses", raw, [{**events[0], "sns_message_id": ses_id}], raw_id=ses_id)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    assert reconcile().linked == 2
    copied = "SELECT metadata ->> 'reconciled_provider_event_id' FROM mailglass_events WHERE type = 'reconciled'"
    assert sorted(row[0] for row in mailglass_db.rows(copied)) == ["sns-1", f"sns-1:{CC}"]


def test_resend_names_no_recipient_of_a_message_to_several(mailglass_db):
    """Its webhook lists the message's recipients, not the event's."""
    raw, events, message_id, raw_id = resend(TO)
    raw["data"]["cc"] = [CC]
    raw_webhooks.store(mailglass_db, "resend", raw, events, raw_id=raw_id)
    factories.insert(mailglass_db, [factories.delivery_row(message_id, recipient=recipient) for recipient in (TO, CC)])
    assert reconcile().ambiguous == 1


@pytest.mark.parametrize("webhook", ["nonsense", "", None, 7])
def test_an_invalid_webhook_id_is_skipped(mailglass_db, webhook):
    """Another writer may have stored anything; the event's own id is tried then."""
    raw, events, message_id, raw_id = postmark(CC)
    raw_webhooks.store(
        mailglass_db, "postmark", raw, [{**events[0], "webhook_event_id": webhook}], raw_id=raw_id, has_webhook_id=False
    )
    factories.delivery(mailglass_db, message_id, recipient=TO)
    assert reconcile().recipient_mismatch == 1


def test_of_a_batch_of_0_1_1_only_the_first_event_has_its_recipient(mailglass_db):
    """No other one says which raw webhook it came in, so the message id alone decides."""
    raw, events, message_id, raw_id = sendgrid(CC)
    raw_webhooks.store(mailglass_db, "sendgrid", raw, events, raw_id=raw_id, has_webhook_id=False)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    assert reconcile().linked_unchecked == 1


def test_an_event_that_is_twice_in_a_batch_has_its_recipient(mailglass_db):
    """SendGrid repeats events within a batch."""
    raw, events, message_id, _ = sendgrid(CC)
    raw_webhooks.store(mailglass_db, "sendgrid", [*raw, raw[1]], events)
    factories.delivery(mailglass_db, message_id, recipient=TO)
    assert reconcile().recipient_mismatch == 1


def test_raw_webhooks_are_read_only_if_they_can_change_the_state(mailglass_db, statements):
    """Unmatched events, and those whose recipient a sweep has stored, need none."""
    raw, events, message_id, raw_id = postmark(CC)
    raw_webhooks.store(mailglass_db, "postmark", raw, events, raw_id=raw_id)
    reconcile()
    assert not [sql for sql in statements if "w.raw_payload" in sql]
    assert mailglass_db.value("SELECT recipient IS NULL FROM mailglass_open_orphans")
    factories.delivery(mailglass_db, message_id, recipient=TO)
    reconcile()
    assert [sql for sql in statements if "w.raw_payload" in sql]
    statements.clear()
    assert reconcile().recipient_mismatch == 1
    assert not [sql for sql in statements if "w.raw_payload" in sql]


def test_without_raw_webhooks_no_event_is_read_for_its_recipient(mailglass_db, statements):
    """An orphan that stays ambiguous would cost its event's documents in each sweep."""
    factories.orphan(mailglass_db, factories.postmark("m-1"))
    factories.delivery(mailglass_db, "m-1", recipient=TO)
    factories.delivery(mailglass_db, "m-1", recipient=CC)
    assert reconcile().ambiguous == 1
    statements.clear()
    assert reconcile().ambiguous == 1
    assert not [sql for sql in statements if "provider_event_id" in sql]


@pytest.mark.slow
def test_a_batch_is_read_once_however_many_events_it_has(mailglass_db, statements):
    """A thousand events of one webhook cost as much as one, and a share each."""
    example = raw_webhooks.payload("sendgrid", "bounced")
    raw = [
        {**example, "email": f"{n}@example.com", "sg_event_id": f"e{n}", "sg_message_id": f"abcdefghijklmnopqrstu{n}"}
        for n in range(1_000)
    ]
    events = [
        {"provider_event_id": row["sg_event_id"], "event": "bounce", "sg_message_id": row["sg_message_id"]}
        for row in raw
    ]
    raw_webhooks.store(mailglass_db, "sendgrid", raw, events)
    rows = [factories.delivery_row(row["sg_message_id"], recipient=row["email"]) for row in raw]
    factories.insert(mailglass_db, rows[:500])
    factories.insert(mailglass_db, [{**row, "recipient": TO} for row in rows[500:]])
    result = reconcile()
    assert (result.linked, result.recipient_mismatch) == (500, 500)
    assert len([sql for sql in statements if "jsonb_array_elements" in sql]) == 1
