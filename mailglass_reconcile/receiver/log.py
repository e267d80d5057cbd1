"""The line of the log for a recorded webhook, whoever receives it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from mailglass_reconcile.record.after_commit import Recorded
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import pluralize

logger = logging.getLogger(__name__)

ATTACHED, WAITING, REPEATED = "attached", "waiting", "repeated"
"""Words for an event with its delivery, for one whose delivery is missing, and for one recorded before."""


def log_recorded(provider: str, recorded: Sequence[Recorded]) -> None:
    """Log how many events of a webhook were recorded, and what became of them."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s: %s", provider_rules.canonical(provider), _format_counts(recorded))


def _format_counts(recorded: Sequence[Recorded]) -> str:
    """Return the number of a webhook's events: attached to a delivery, waiting for one, in other states, repeated."""
    counts = Counter(map(_describe, recorded))
    order = [ATTACHED, WAITING, *sorted(counts.keys() - {ATTACHED, WAITING, REPEATED}), REPEATED]
    return ", ".join(
        [pluralize(len(recorded), "event"), *(f"{counts[word]:,} {word}" for word in order if counts[word])]
    )


def _describe(event: Recorded) -> str:
    if event.event_id is None:
        return REPEATED
    if event.delivery_id is not None:
        return ATTACHED
    return WAITING if event.state in ("matched", "unmatched", None) else event.state
