"""Detect a changed webhook format: warn of events of a known type with neither an id nor a recipient."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

_throttle = LogThrottle()

count_warning: Callable[[str, str], None] | None = None
"""Hook that counts a warning by provider and type."""


def identify_or_warn(provider: str, event: WebhookEvent) -> bool:
    """Return True if *event* names a message or a recipient; else return False, and warn if its type is known.

    The format must have changed then. Pings and events of the account have no known type.
    """
    if event.message_id is not None or event.recipient is not None:
        return True
    if event.type != "unknown":
        _warn(provider, event.type)
    return False


def _warn(provider: str, type_: str) -> None:
    if count_warning:
        count_warning(provider, type_)
    if _throttle.allow((provider, type_)):
        logger.warning(
            "an event of %s (%s) has neither a message id nor a recipient: its format may have changed, and such events"
            " are not linked; look for a newer version of mailglass-reconcile",
            provider,
            type_,
        )
