"""Postmark's events, as documented: https://postmarkapp.com/developer/webhooks/webhooks-overview."""

import json

import pytest

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

CHANGE = next(e.payload for e in load_payloads("postmark") if e.payload["RecordType"] == "SubscriptionChange")


@pytest.mark.parametrize("fields", [{"Origin": "Customer"}, {"Origin": "Admin"}, {"SuppressSending": False}])
def test_a_change_of_a_subscription_may_name_no_message(fields):
    """https://postmarkapp.com/developer/webhooks/subscription-change-webhook: MessageID is null then.

    It is no fault of the provider's or of the reader's.
    """
    change = CHANGE | {"MessageID": None, "SuppressionReason": "ManualSuppression"} | fields
    (event,) = parse("postmark", json.dumps(change).encode())
    assert (event.message_id, event.recipient) == (None, CHANGE["Recipient"])
    assert provider_rules.may_lack_id("postmark", event.type)


@pytest.mark.parametrize("type_", ["delivered", "opened", "clicked", "deferred", "bounced"])
def test_other_events_of_postmark_name_their_message(type_):
    """All their payloads have a MessageID."""
    assert not provider_rules.may_lack_id("postmark", type_)
