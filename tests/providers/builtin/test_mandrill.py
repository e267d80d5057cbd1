"""Mandrill's events, as documented: https://mailchimp.com/developer/transactional/docs/webhooks/."""

import json
from urllib.parse import urlencode

import pytest

from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

FORM = "application/x-www-form-urlencoded"


def read(*payloads):
    """Return the events of a batch."""
    return parse("mandrill", urlencode({"mandrill_events": json.dumps(payloads)}).encode(), content_type=FORM)


def test_a_repeated_event_is_the_same_when_its_message_has_been_indexed_meanwhile():
    """The page: `msg` "may be empty" when the message was not yet indexed. A later open is another event."""
    first = {"event": "open", "_id": "m", "ts": 1, "ip": "192.0.2.1", "user_agent": "x", "msg": {"email": "a@b.c"}}
    (event,) = read({**first, "msg": {}})
    for repeated in (first, {**first, "msg": {"email": "a@b.c", "_id": "m", "opens": [{"ts": 1}], "state": "sent"}}):
        assert read(repeated)[0].provider_event_id == event.provider_event_id
    for changed in ({"ts": 2}, {"_id": "n"}, {"ip": "192.0.2.2"}, {"event": "click", "url": "https://shop.example"}):
        assert read({**first, **changed})[0].provider_event_id != event.provider_event_id
