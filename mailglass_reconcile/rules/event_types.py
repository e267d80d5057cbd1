"""The types of events, in the order of the projection."""

from __future__ import annotations

from typing import Literal, get_args

from mailglass_reconcile.rules.humanize import did_you_mean, sanitize

SenderType = Literal["unknown", "queued", "sent", "dispatched"]
ProviderType = Literal[
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
]

SENDER_TYPES: tuple[str, ...] = get_args(SenderType)
"""Types that the sending side reports; they rank below those of a provider."""

PROVIDER_TYPES: tuple[str, ...] = get_args(ProviderType)
"""Types that a provider reports; at equal times, the later one in this list wins."""

TYPES = (*SENDER_TYPES, *PROVIDER_TYPES)

FINAL_TYPES = ("delivered", "suppressed", "rejected", "failed", "bounced", "complained")
"""Types after which a delivery is terminal."""

REJECT_REASONS = ("invalid", "bounced", "timed_out", "blocked", "spam", "unsubscribed", "other")
"""Why a message was rejected or bounced."""

ALL = "*"


def suggest_type(type_: str) -> str | None:
    """Return a sentence that suggests a type similar to an unknown one, or None."""
    suggestion = "" if type_ in TYPES else did_you_mean(type_, TYPES)
    return f"no event has the type {sanitize(type_)}{suggestion}" if suggestion else None
