"""The types and subtypes of SES's bounces, in webhooks of SES and of Resend."""

import json

import pytest

from mailglass_reconcile.webhooks import parse
from senders import load_payloads

pytestmark = pytest.mark.version_independent

SES = next(event.payload for event in load_payloads("ses") if "bounce" in event.payload)
RESEND = next(event.payload for event in load_payloads("resend") if "bounce" in event.payload["data"])


def ses(type_: str, subtype: str) -> dict:
    """Return a bounce of SES."""
    return {**SES, "bounce": {**SES["bounce"], "bounceType": type_, "bounceSubType": subtype}}


def resend(type_: str, subtype: str) -> dict:
    """Return a bounce of Resend; the message is of a captured payload.

    github.com/stechstudio/laravel-postmaster, tests/fixtures/resend/bounced.json.
    """
    bounce = {"type": type_, "subType": subtype, "message": "The recipient mailbox does not exist"}
    return {**RESEND, "data": {**RESEND["data"], "bounce": bounce}}


@pytest.mark.parametrize("bounce", [ses, resend])
@pytest.mark.parametrize(
    ("type_", "subtype", "expected"),
    [
        ("Permanent", "General", ("bounced", "bounced", "hard")),
        ("Permanent", "NoEmail", ("bounced", "bounced", "hard")),
        ("Permanent", "Suppressed", ("suppressed", "bounced", None)),
        ("Permanent", "OnAccountSuppressionList", ("suppressed", "bounced", None)),
        ("Permanent", "OnTenantSuppressionList", ("suppressed", "bounced", None)),
        ("Permanent", "EmailValidationSuppressed", ("suppressed", "bounced", None)),
        ("Permanent", "UnsubscribedRecipient", ("suppressed", "unsubscribed", None)),
        ("Permanent", "Newer", ("bounced", "bounced", None)),
        ("Transient", "General", ("bounced", "other", "soft")),
        ("Transient", "MailboxFull", ("bounced", "other", "soft")),
        ("Transient", "MessageTooLarge", ("bounced", "other", "soft")),
        ("Transient", "ContentRejected", ("bounced", "other", "soft")),
        ("Transient", "AttachmentRejected", ("bounced", "other", "soft")),
        ("Undetermined", "Undetermined", ("bounced", "other", None)),
    ],
)
def test_the_type_of_a_bounce_says_whether_it_is_hard(bounce, type_, subtype, expected):
    """https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types, and Resend's page.

    An automatic answer is `Transient` and `General`. What is suppressed was not sent: SES's newer lists are read by
    their names' shape, so that the next one is no hard bounce either.
    """
    (event,) = parse(bounce.__name__, json.dumps(bounce(type_, subtype)).encode())
    assert (event.type, event.reject_reason, event.bounce) == expected
