"""Types and subtypes of Amazon SES's bounces and complaints, whose words Resend passes on.

Followed: https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types and
https://resend.com/docs/dashboard/emails/email-bounces. Newer lists are recognised by their names' shape, such as
`OnTenantSuppressionList` (https://docs.aws.amazon.com/ses/latest/dg/tenants.html).
"""

from __future__ import annotations

from mailglass_reconcile.rules.events import Bounce

_NOT_SENT = ("SuppressionList", "Suppressed")
_UNSUBSCRIBED = "UnsubscribedRecipient"
_HARD = ("General", "NoEmail")


def is_suppressed(subtype: object) -> bool:
    """Whether SES did not send, because the address is on a list: its own, the account's, a tenant's or a contacts'."""
    return isinstance(subtype, str) and (subtype.endswith(_NOT_SENT) or subtype == _UNSUBSCRIBED)


def suppression_reason(subtype: object, reason: str) -> str:
    """Return why an address is on the list; *reason* is why addresses usually are."""
    return "unsubscribed" if subtype == _UNSUBSCRIBED else reason


def read_bounce(type_: object, subtype: object) -> tuple[str, str | None, Bounce | None] | None:
    """Return a bounce's type, reason, and whether it is hard; None if its type is not known.

    A `Transient` one may be an automatic answer, such as of a person on holiday.
    """
    if is_suppressed(subtype):
        return "suppressed", suppression_reason(subtype, "bounced"), None
    if type_ == "Permanent":
        return "bounced", "bounced", "hard" if subtype in _HARD else None
    if type_ == "Transient":
        return "bounced", "other", "soft"
    return ("bounced", "other", None) if type_ == "Undetermined" else None
