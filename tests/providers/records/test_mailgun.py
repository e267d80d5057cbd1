"""Mailgun's events, as documented: https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads."""

import copy
import json

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

FAILED = next(e.payload for e in load_payloads("mailgun") if e.payload.get("reason") == "suppress-bounce")
OPENED = next(e.payload for e in load_payloads("mailgun") if e.payload["event"] == "opened")


def read(payload, **fields):
    """Return the only event of a webhook."""
    (event,) = parse("mailgun", json.dumps({"event-data": copy.deepcopy(payload) | fields}).encode())
    return event


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        ("suppress-bounce", 605, ("suppressed", "bounced", None)),
        ("suppress-bounce", 551, ("suppressed", "bounced", None)),
        ("suppress-unsubscribe", 606, ("suppressed", "unsubscribed", None)),
        ("suppress-complaint", 607, ("suppressed", "spam", None)),
        ("bounce", 550, ("bounced", "bounced", "hard")),
        ("generic", 550, ("bounced", "other", "hard")),
        ("old", 602, ("bounced", "timed_out", "soft")),
    ],
)
def test_the_reason_of_a_failure_says_whether_mailgun_has_sent_at_all(reason, code, expected):
    """The reasons of suppressions: https://documentation.mailgun.com/en/latest/api-stats.html; 605 is documented.

    github.com/mailgun/documentation, source/api-events.rst; 602 is "too old", after eight hours.
    """
    event = read(FAILED, reason=reason, **{"delivery-status": {"code": code, "message": ""}})
    assert (event.type, event.reject_reason, event.bounce) == expected
    # codes from 600 are Mailgun's own; of what it did not send, the code is that of an earlier bounce
    assert event.smtp_status == ("550" if code == 550 else None)


def test_the_last_failure_is_final_though_its_severity_is_temporary():
    """https://feedback.mailgun.com/forums/914635-general-feedback/suggestions/37219720."""
    event = read(FAILED, severity="temporary", reason="old")
    assert (event.type, event.reject_reason, event.bounce) == ("bounced", "timed_out", "soft")
    event = read(FAILED, severity="temporary", reason="generic")
    assert (event.type, event.reject_reason, event.bounce) == ("deferred", "other", None)


@pytest.mark.parametrize(
    ("status", "codes"),
    [
        (
            {"code": 550, "message": "smtp; 550-5.1.1 The account does not exist.", "enhanced-code": "5.1.1"},
            "550 5.1.1",
        ),
        ({"code": 451, "message": "4.7.652 The mail server has exceeded", "enhanced-code": "4.7.652"}, "451 4.7.652"),
        ({"code": 550, "message": "No Such User Here", "enhanced-code": ""}, "550"),
        ({"code": 550, "message": "5.1.1 no ann@example.org"}, "550 5.1.1"),
        ({"code": 250, "message": "OK"}, "250"),
        ({"code": 605, "message": ""}, None),
        (None, None),
    ],
)
def test_the_codes_of_the_servers_reply_are_kept(status, codes):
    """The page's delayed bounce, temporary failure and delivery; the third is captured by Symfony's mailer."""
    assert read(FAILED, reason="bounce", **{"delivery-status": status}).smtp_status == codes


@pytest.mark.parametrize("event", ["opened", "clicked"])
@pytest.mark.parametrize(("bot", "metadata"), [("apple", {"machine": True}), ("generic", {"machine": True}), ("", {})])
def test_an_open_or_click_by_a_machine_says_so(event, bot, metadata):
    """https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages/tracking-messages: `bot`."""
    parsed = read(OPENED, event=event, **{"client-info": {"client-name": "unknown", "bot": bot}})
    assert (parsed.type, parsed.metadata) == (event, metadata)
