"""Scaleway's webhooks, as documented."""

import pytest

from mailglass_reconcile.rules import providers
from mailglass_reconcile.webhooks import parse
from senders import documented, posted


@pytest.mark.parametrize(
    ("kind", "read_as"),
    [
        ("email_queued", (None, None)),
        ("email_delivered", (None, "250")),
        ("email_deferred", ("soft", "450")),
        ("email_dropped", ("hard", "550")),
        ("email_mailbox_not_found", ("hard", "550 5.1.1")),
        ("email_spam", (None, "554")),
        ("email_blocklisted", (None, None)),
    ],
)
def test_the_type_of_an_event_says_whether_a_bounce_is_hard_or_soft(kind, read_as):
    """https://www.scaleway.com/en/docs/transactional-email/reference-content/webhook-events-payloads/#webhook-event-type.

    What is dropped has hard-bounced, what is deferred has soft-bounced.
    """
    (told,) = [one.payload for one in documented("scaleway") if one.payload["type"] == kind]
    (request,) = posted("scaleway", [told])
    (event,) = parse("scaleway", request.body, request.headers)
    assert (event.bounce, event.smtp_status) == read_as


def test_what_the_blocklist_stops_has_no_id_and_is_no_fault():
    """The documented payload of `email_blocklisted` has no `email_id`, on the same page."""
    (told,) = [one.payload for one in documented("scaleway") if one.payload["type"] == "email_blocklisted"]
    (request,) = posted("scaleway", [told])
    (event,) = parse("scaleway", request.body, request.headers)
    assert (event.type, event.reject_reason, event.message_id) == ("suppressed", "bounced", None)
    assert providers.may_lack_id("scaleway", event.type)
    assert not providers.may_lack_id("scaleway", "delivered")
