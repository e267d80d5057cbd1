"""Brevo's webhooks, as captured and as documented."""

import datetime as dt
import json

import pytest

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

EVENT = {
    "event": "delivered",
    "email": "ann@example.org",
    "id": 814119,
    "message-id": "<202305311328.81899448177@smtp-relay.mailin.fr>",
    "date": "2023-05-31 15:52:01",
    "ts": 1685541121,
    "ts_event": 1685541121,
    "ts_epoch": 1685541121606,
}
"""Ids and times are of a captured payload: github.com/symfony/symfony, Mailer/Bridge/Brevo/Tests/Webhook/Fixtures."""


def read(**fields):
    """Return the only event of a payload."""
    (event,) = parse("brevo", json.dumps({**EVENT, **fields}).encode())
    return event


def test_an_unsubscription_is_called_unsubscribed():
    """Captured: symfony/symfony, Mailer/Bridge/Brevo/Tests/Webhook/Fixtures/unsubscribed.json.

    Marketing webhooks call it `unsubscribe`: https://developers.brevo.com/docs/marketing-webhooks.
    """
    event = read(event="unsubscribed", is_returnpath=True, tags=["tag1", "tag2"], tag='["tag1","tag2"]')
    assert (event.type, event.reject_reason) == ("unsubscribed", None)
    assert event.metadata == {"tags": ["tag1", "tag2"]}
    assert read(event="unsubscribe").type == "unsubscribed"


def test_the_codes_of_the_servers_reply_are_kept():
    """Captured: symfony/symfony, Mailer/Bridge/Brevo/Tests/Webhook/Fixtures/hard_bounce.json, shortened."""
    reason = "550-5.1.1 The email account that you tried to reach does not exist.\n   550 5.1.1 g14-20020a5d - gsmtp"
    assert read(event="hard_bounce", reason=reason).smtp_status == "550 5.1.1"


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (" RecipientError: 550 5.5.0 <ann@example.org> unknown", "550 5.5.0"),
        ("550 RecipientError: 550 5.1.1 <ann@example.org> unknown", "550 5.1.1"),
        ("RecipientError: mailbox unavailable", None),
        (550, None),
    ],
)
def test_the_codes_of_a_reply_behind_a_word_of_brevos_are_kept(reason, status):
    """github.com/anymail/django-anymail, tests/test_brevo_webhooks.py."""
    assert read(event="hard_bounce", reason=reason).smtp_status == status


def test_two_webhooks_of_one_account_record_an_event_once():
    """`id` is the webhook's; an old and a new URL may overlap during a move."""
    assert read(id=814119).provider_event_id == read(id=814120).provider_event_id
    assert read(ts_epoch=1685541121607).provider_event_id != read().provider_event_id


@pytest.mark.parametrize(
    ("times", "at"),
    [
        ({}, dt.datetime(2023, 5, 31, 13, 52, 1, 606_000, tzinfo=dt.UTC)),
        # soft_bounce.json of the same folder, which is the example of https://developers.brevo.com/docs/transactional-webhooks
        (
            {"ts": 1604933619, "ts_event": 1604933654, "ts_epoch": None},
            dt.datetime(2020, 11, 9, 14, 54, 14, tzinfo=dt.UTC),
        ),
        # invalid_email.json, as above: `ts_epoch` in seconds, which is not the event's time
        ({"ts_event": 1604933654, "ts_epoch": 1604933623}, dt.datetime(2020, 11, 9, 14, 54, 14, tzinfo=dt.UTC)),
        ({"ts_event": None, "ts_epoch": 1604933623}, dt.datetime(2020, 11, 9, 14, 53, 43, tzinfo=dt.UTC)),
        ({"ts_event": "1604933654", "ts_epoch": "now"}, dt.datetime(2020, 11, 9, 14, 54, 14, tzinfo=dt.UTC)),
    ],
)
def test_the_time_is_read_with_and_without_milliseconds(times, at):
    """If `ts_epoch` is missing, `ts_event` is read, which is in UTC too."""
    assert read(**times).occurred_at == at


def test_an_event_without_any_of_its_times_happened_now():
    """It is not lost."""
    now = read(ts_event=None, ts_epoch=None).occurred_at
    assert dt.datetime.now(dt.UTC) - now < dt.timedelta(minutes=1)


def test_an_addition_to_a_list_has_no_id_and_is_no_fault():
    """https://developers.brevo.com/docs/marketing-webhooks."""
    body = json.dumps({"event": "list_addition", "email": "ann@example.org", "list_id": [1]}).encode()
    (event,) = parse("brevo", body)
    assert (event.type, event.message_id) == ("subscribed", None)
    assert provider_rules.may_lack_id("brevo", event.type)
    assert not provider_rules.may_lack_id("brevo", "delivered")
