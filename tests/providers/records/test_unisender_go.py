"""Unisender Go's webhooks, as documented."""

import json

import pytest

from mailglass_reconcile.webhooks import parse

pytestmark = pytest.mark.version_independent

EVENT = {
    "event_name": "transactional_email_status",
    "job_id": "1a3Q2V-0000OZ-S0",
    "email": "recipient.email@example.com",
    "event_time": "2015-11-30 15:09:42",
}


@pytest.mark.parametrize(
    ("status", "cause", "bounce"),
    [
        ("hard_bounced", "err_user_unknown", "hard"),
        ("hard_bounced", "err_user_inactive", "hard"),
        ("hard_bounced", "err_mailbox_discarded", "hard"),
        ("hard_bounced", "err_domain_inactive", "hard"),
        ("hard_bounced", "err_unreachable", "hard"),
        ("hard_bounced", "err_mailbox_full", "soft"),
        ("hard_bounced", "err_too_large", "soft"),
        ("hard_bounced", "err_spam_rejected", "soft"),
        ("hard_bounced", "err_skip_letter", None),
        ("hard_bounced", None, "soft"),
        ("soft_bounced", "err_will_retry", "soft"),
        ("soft_bounced", "err_user_unknown", "soft"),
        ("delivered", "ok", None),
        ("spam", None, None),
    ],
)
def test_a_hard_bounce_is_one_whose_cause_lies_in_the_address(status, cause, bounce):
    """https://godocs.unisender.ru/web-api-ref#callback-format: `hard_bounced` only means that it is not tried again."""
    payload = {**EVENT, "status": status, "delivery_info": {"delivery_status": cause}}
    (event,) = parse("unisender_go", json.dumps(payload).encode())
    assert event.bounce == bounce


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("err_unsubscribed", "unsubscribed"), ("err_skip_letter", "bounced"), ("err_spam_skipped", "spam")],
)
@pytest.mark.parametrize("status", ["hard_bounced", "soft_bounced"])
def test_what_unisender_go_has_not_sent_is_suppressed(status, cause, reason):
    """https://godocs.unisender.ru/web-api-ref#callback-format: "sending has been canceled"."""
    payload = {**EVENT, "status": status, "delivery_info": {"delivery_status": cause}}
    (event,) = parse("unisender_go", json.dumps(payload).encode())
    assert (event.type, event.reject_reason, event.bounce) == ("suppressed", reason, None)


def test_the_code_of_the_servers_reply_is_kept():
    """https://godocs.unisender.ru/web-api-ref#callback-format."""
    info = {"delivery_status": "err_spam_rejected", "destination_response": "550 Spam rejected"}
    (event,) = parse("unisender_go", json.dumps({**EVENT, "status": "hard_bounced", "delivery_info": info}).encode())
    assert event.smtp_status == "550"
