"""Scaleway's webhooks, as documented."""

import pytest

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.webhooks import parse
from senders import load_payloads, make_requests

pytestmark = pytest.mark.version_independent


def test_what_the_blocklist_stops_has_no_id_and_is_no_fault():
    """The documented payload of `email_blocklisted` has no `email_id`, on the same page."""
    (payload,) = [event.payload for event in load_payloads("scaleway") if event.payload["type"] == "email_blocklisted"]
    (request,) = make_requests("scaleway", [payload])
    (event,) = parse("scaleway", request.body, request.headers)
    assert (event.type, event.reject_reason, event.message_id) == ("suppressed", "bounced", None)
    assert provider_rules.may_lack_id("scaleway", event.type)
    assert not provider_rules.may_lack_id("scaleway", "delivered")
