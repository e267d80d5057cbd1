"""Formats that have changed: an event of a known type, with neither an id nor a recipient, is warned of and counted."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_counts: Counter[tuple[str, str]] = Counter()
_throttle = LogThrottle()

count_elsewhere: Callable[[str, str], None] | None = None
"""Counts a warning in the application's metrics too, by provider and type."""


def names_a_message(provider: str, event: WebhookEvent) -> bool:
    """Whether a delivery can be found for an event: if not, and its type is known, the format must have changed.

    Pings and events of the account have no known type, so they cause no warning.
    """
    if event.message_id is not None or event.recipient is not None:
        return True
    if event.type != "unknown":
        _warn(provider, event.type)
    return False


def counts() -> Mapping[tuple[str, str], int]:
    """Return how many such events this process has had, by provider and type."""
    with _lock:
        return dict(_counts)


def _warn(provider: str, type_: str) -> None:
    if count_elsewhere:
        count_elsewhere(provider, type_)
    with _lock:
        _counts[provider, type_] += 1
    if _throttle.allow((provider, type_)):
        logger.warning(
            "an event of %s (%s) has neither a message id nor a recipient: its format may have changed, and such events"
            " are not linked; look for a newer version of mailglass-reconcile",
            provider,
            type_,
        )
