"""Types and subtypes of Amazon SES's bounces and complaints, which Resend uses too.

Followed: https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types and
https://resend.com/docs/dashboard/emails/email-bounces. Newer lists are recognised by the ending of their names, such as
`OnTenantSuppressionList` (https://docs.aws.amazon.com/ses/latest/dg/tenants.html).
"""

from __future__ import annotations

from typing import Final

from mailglass_reconcile.providers.provider import EventKind

_NOT_SENT = ("SuppressionList", "Suppressed")
_HARD = ("General", "NoEmail")

BOUNCES: Final = {
    "hard": EventKind("bounced", "bounced", "hard"),
    "permanent": EventKind("bounced", "bounced"),
    "soft": EventKind("bounced", "other", "soft"),
    "undetermined": EventKind("bounced", "other"),
    "suppressed": EventKind("suppressed", "bounced"),
    "unsubscribed": EventKind("suppressed", "unsubscribed"),
}
"""Rows of bounces. A soft bounce may be an automatic reply, such as an out-of-office message."""


def suppression_row(subtype: object) -> str | None:
    """Return the row of a message that SES did not send because of a suppression list or an unsubscribed contact.

    The list may be that of SES, of the account, or of a tenant.
    """
    if not isinstance(subtype, str):
        return None
    return (
        "unsubscribed" if subtype == "UnsubscribedRecipient" else "suppressed" if subtype.endswith(_NOT_SENT) else None
    )


def bounce_row(type_: object, subtype: object) -> str | None:
    """Return the row of a bounce, or None if its type is not known."""
    if row := suppression_row(subtype):
        return row
    if type_ == "Permanent":
        return "hard" if subtype in _HARD else "permanent"
    return {"Transient": "soft", "Undetermined": "undetermined"}.get(str(type_))
