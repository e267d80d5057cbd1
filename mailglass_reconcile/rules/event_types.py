"""The types of events, and how they are chosen in a setting."""

from __future__ import annotations

from mailglass_reconcile.rules.humanize import did_you_mean, sanitize

OWN_TYPES = ("unknown", "queued", "sent", "dispatched")
"""What our own side reports: below everything that a provider reports."""

PROVIDER_TYPES = (
    "subscribed",
    "autoresponded",
    "deferred",
    "delivered",
    "opened",
    "clicked",
    "unsubscribed",
    "suppressed",
    "rejected",
    "failed",
    "bounced",
    "complained",
)
"""What a provider reports; on equal times, the type that stands later wins."""

TYPES = (*OWN_TYPES, *PROVIDER_TYPES)

REJECT_REASONS = ("invalid", "bounced", "timed_out", "blocked", "spam", "unsubscribed", "other")
"""Why a message was rejected or bounced."""

ALL = "*"


def mistyped(type_: str) -> str | None:
    """Return a sentence if no event has this type and a similar one is known; None otherwise."""
    meant = "" if type_ in TYPES else did_you_mean(type_, TYPES)
    return f"no event has the type {sanitize(type_)}{meant}" if meant else None
