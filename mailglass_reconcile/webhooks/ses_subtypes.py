"""Types and subtypes of Amazon SES's bounces and complaints, whose words Resend passes on.

Followed: https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types and
https://resend.com/docs/dashboard/emails/email-bounces. Newer lists are recognised by their names' shape, such as
`OnTenantSuppressionList` (https://docs.aws.amazon.com/ses/latest/dg/tenants.html).
"""

from __future__ import annotations

from typing import Final

from mailglass_reconcile.webhooks.provider import Kind

_NOT_SENT = ("SuppressionList", "Suppressed")
_HARD = ("General", "NoEmail")

BOUNCES: Final = {
    "hard": Kind("bounced", "bounced", "hard"),
    "permanent": Kind("bounced", "bounced"),
    "soft": Kind("bounced", "other", "soft"),
    "undetermined": Kind("bounced", "other"),
    "suppressed": Kind("suppressed", "bounced"),
    "unsubscribed": Kind("suppressed", "unsubscribed"),
}
"""Rows of bounces. A soft one may be an automatic answer, such as of a person on holiday."""


def suppression_row(subtype: object) -> str | None:
    """Return the row of what SES did not send, because the address is on a list, or its contact has unsubscribed.

    The list may be its own, the account's, or a tenant's.
    """
    if not isinstance(subtype, str):
        return None
    return (
        "unsubscribed" if subtype == "UnsubscribedRecipient" else "suppressed" if subtype.endswith(_NOT_SENT) else None
    )


def bounce_row(type_: object, subtype: object) -> str | None:
    """Return the row of a bounce; None if its type is not known."""
    if row := suppression_row(subtype):
        return row
    if type_ == "Permanent":
        return "hard" if subtype in _HARD else "permanent"
    return {"Transient": "soft", "Undetermined": "undetermined"}.get(str(type_))
