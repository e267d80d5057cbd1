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


def test_two_webhooks_of_one_account_record_an_event_once():
    """`id` is the webhook's; an old and a new URL may overlap during a move."""
    assert read(id=814119).provider_event_id == read(id=814120).provider_event_id
    assert read(ts_epoch=1685541121607).provider_event_id != read().provider_event_id


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
