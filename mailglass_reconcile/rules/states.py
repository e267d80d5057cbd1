"""All states that commands, counts and the run history name, with their words; no other module defines one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from mailglass_reconcile.rules import provider_rules

MatchState = Literal["matched", "unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch"]
"""The matcher's result for an orphan; the next sweep links a `matched` one."""

OpenState = Literal["waiting", MatchState, "unseen", "expired"]
"""The state of an orphan that is not linked: `waiting` in its grace period, `expired` after the maximum age.

The matcher's result is stored with it; an orphan past its grace that no sweep has checked yet is `unseen`.
"""

UNSEEN: Final = "unseen"

EventState = Literal[OpenState, "linked", "attached", "settled", "no_orphan", "missing", "unknown"]
"""The state of any event, for `explain`."""

Skipped = Literal["skipped_limit", "skipped_deadline", "skipped_held"]
"""Why a sweep did not link an orphan that matches, or did not check it."""

Outcome = Literal[
    "linked",
    "unmatched",
    "unmatchable",
    "ambiguous",
    "tenant_mismatch",
    "recipient_mismatch",
    "skipped",
    "failed",
]
"""The result for each orphan that a sweep scanned; `skipped` is the sum of its three reasons."""

SweepStatus = Literal["ok", "partial", "failed"]
RunStatus = Literal[SweepStatus, "duplicate"]
"""The status of a run in the history; `duplicate` if the same sweep was queued or running already."""

FindingStatus = Literal["ok", "warning", "error"]
"""The doctor's result for a part of the installation."""

MATCH_STATES: tuple[MatchState, ...] = get_args(MatchState)
OPEN_STATES: tuple[OpenState, ...] = get_args(OpenState)
EVENT_STATES: tuple[EventState, ...] = get_args(EventState)
SKIPPED: tuple[Skipped, ...] = get_args(Skipped)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)


class Meaning(NamedTuple):
    """A state in words.

    Attributes:
        short: A label of a few words, for a table or a legend.
        sentence: The reason for the state; it fits one event and many.
    """

    short: str
    sentence: str


MEANINGS: Mapping[str, Meaning] = {
    "matched": Meaning("can be linked", "its delivery exists; the next sweep links it"),
    "unmatched": Meaning("no delivery yet", "no delivery has a matching id yet"),
    "unmatchable": Meaning("no usable id", "no provider, or no usable id"),
    "ambiguous": Meaning(
        "no single delivery",
        "several deliveries have this id, or the event's recipient is unknown, so none can be chosen",
    ),
    "tenant_mismatch": Meaning("another tenant's", "only another tenant's deliveries have the id"),
    "recipient_mismatch": Meaning("another recipient's", "only deliveries to other recipients have the id"),
    "unseen": Meaning("not checked yet", "no sweep has checked it yet; the next full sweep does"),
    "waiting": Meaning(
        "in its grace period", "still in its grace period; the first full sweep after it will check this event"
    ),
    "expired": Meaning("too old", "older than the maximum age, so no sweep checks it any more"),
    "linked": Meaning("linked", "linked to its delivery"),
    "attached": Meaning("stored with its delivery", "it was stored with its delivery"),
    "settled": Meaning("closed", "closed by a `reconciled` event that names no delivery"),
    "no_orphan": Meaning("needs no delivery", "stored without a delivery on purpose; never linked"),
    "missing": Meaning("not in the open-orphan table", "the table of open orphans does not contain this orphan"),
    "unknown": Meaning("unknown", "no event in the ledger has this id"),
    "skipped": Meaning("skipped", "not checked, or not linked, by this sweep"),
    "skipped_limit": Meaning("beyond the limit", "the sweep reached its limit before it could check or link them"),
    "skipped_deadline": Meaning("out of time", "the sweep ended before it could check or link them"),
    "skipped_held": Meaning("held elsewhere", "another session has claimed them or has already closed them"),
    "failed": Meaning("refused", "the database refused to read or link them"),
}
"""Each state, and each count of a sweep, in words, for commands, `explain` and the dashboard."""

_SYNTHETIC = (
    "if Mailglass sent the message, no delivery ever will: for this provider it stores a generated id"
    " (mailglass-synthetic-…)"
)
_SEVERAL = "several deliveries have this id, so none can be chosen"
_RECIPIENT_LOST = (
    "the event's recipient is unknown (erased, or lost when the table of open orphans was rebuilt), so no delivery can"
    " be chosen"
)
_RECIPIENT_ERASED = (
    "only deliveries to other recipients have the id; the recipient of at least one was erased, and this event may be"
    " about that person"
)
NOT_CHECKED = "not checked: it could not be read, so the message id alone decides"
"""The recipient of an event that is linked without comparing it."""


def short_label(state: str) -> str:
    """Return the label of a state; a state that this version does not define is its own label."""
    return MEANINGS[state].short if state in MEANINGS else state


def explain_state(
    state: EventState,
    *,
    provider: str | None = None,
    recipient_lost: bool = False,
    recipient_erased: bool = False,
) -> str:
    """Return the reason for a state, with the details that are known."""
    if state == "ambiguous":
        return _RECIPIENT_LOST if recipient_lost else _SEVERAL
    if state == "recipient_mismatch" and recipient_erased:
        return _RECIPIENT_ERASED
    definition = provider_rules.load_definition(provider) if provider else None
    if state == "unmatched" and definition and definition.synthetic_ids:
        return f"{MEANINGS[state].sentence}; {_SYNTHETIC}"
    return MEANINGS[state].sentence
