"""Every state that a command, a count or the run history names, with its words; no other module defines one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from mailglass_reconcile.errors import with_command_name
from mailglass_reconcile.rules import providers

Verdict = Literal["matched", "unmatched", "unmatchable", "ambiguous", "tenant_mismatch", "recipient_mismatch"]
"""What the rule says of an orphan; `matched` is what the next sweep links."""

OpenState = Literal["waiting", Verdict, "unseen", "expired"]
"""The state of an orphan that is not linked: `waiting` in its grace period, `expired` after the maximum age.

The verdicts are stored with it; `unseen` is one past its grace that no sweep has looked at yet.
"""

UNSEEN: Final = "unseen"

EventState = Literal[OpenState, "linked", "attached", "settled", "no_orphan", "missing", "unknown"]
"""What `explain` says of any event."""

Skipped = Literal["skipped_limit", "skipped_deadline", "skipped_held"]
"""Why a sweep left an orphan that matches, or did not look at it."""

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
"""How a run of the history ended; `duplicate` if the same sweep was queued or running already."""

FindingStatus = Literal["ok", "warning", "error"]
"""What the doctor says of a part of the installation."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
OPEN_STATES: tuple[OpenState, ...] = get_args(OpenState)
EVENT_STATES: tuple[EventState, ...] = get_args(EventState)
SKIPPED: tuple[Skipped, ...] = get_args(Skipped)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)


class Meaning(NamedTuple):
    """What a state means to a person.

    Attributes:
        short: A few words, for a table or a legend.
        sentence: Why an event is in this state; it fits one event and many.
        remedy: What has to change so that the event can be linked; None if nothing has to.
    """

    short: str
    sentence: str
    remedy: str | None = None


_BY_HAND = "if you know its delivery, link it by hand: `mailglass-reconcile link EVENT_ID DELIVERY_ID --reason ''`"

MEANINGS: Mapping[str, Meaning] = {
    "matched": Meaning("can be linked", "its delivery exists; the next sweep links it"),
    "unmatched": Meaning(
        "no delivery yet",
        "no delivery has a matching id yet",
        "store a delivery of the event's tenant under one of these ids, with the event's provider or none; if other"
        f" software sent the message through your account, there will never be one; {_BY_HAND}",
    ),
    "unmatchable": Meaning(
        "no usable id",
        "no provider, or no usable id",
        f"the event must name a provider, and have an id in one of the places read; {_BY_HAND}",
    ),
    "ambiguous": Meaning(
        "no single delivery",
        "nothing shows which delivery is meant: several deliveries have the id, or the recipient is no longer known",
        f"the event must name its recipient, or only one of the deliveries may have the event's provider; {_BY_HAND}",
    ),
    "tenant_mismatch": Meaning(
        "another tenant's",
        "only another tenant's deliveries have the id",
        "event and delivery need the same tenant: make the webhook find its tenant (in Mailglass,"
        " resolve_webhook_tenant); stored events keep their tenant",
    ),
    "recipient_mismatch": Meaning(
        "another recipient's",
        "only deliveries to other recipients have the id",
        f"store a delivery to the event's recipient under one of these ids; {_BY_HAND}",
    ),
    "unseen": Meaning("not checked yet", "no sweep has checked it yet; the next full sweep does"),
    "waiting": Meaning(
        "in its grace period", "still in its grace period; the first full sweep after it will check this event"
    ),
    "expired": Meaning(
        "too old",
        "older than the maximum age, so no sweep checks it any more",
        "run `mailglass-reconcile sweep --event EVENT_ID`, which links it if its delivery exists",
    ),
    "linked": Meaning("linked", "it has its delivery"),
    "attached": Meaning("stored with its delivery", "it was stored with its delivery"),
    "settled": Meaning("closed", "closed by a `reconciled` event that names no delivery"),
    "no_orphan": Meaning("needs no delivery", "it has no delivery, and does not ask for one"),
    "missing": Meaning(
        "not in the open-orphan table",
        "the table of open orphans does not contain this orphan",
        "run `mailglass-reconcile prune`, which repairs that table from the ledger",
    ),
    "unknown": Meaning("unknown", "no event in the ledger has this id"),
    "skipped": Meaning("skipped", "not checked, or not linked, by this sweep"),
    "skipped_limit": Meaning("beyond the limit", "can be linked, but the sweep had reached its limit"),
    "skipped_deadline": Meaning("out of time", "the sweep ended before it could check or link them"),
    "skipped_held": Meaning("held elsewhere", "another session holds them or has already closed them"),
    "failed": Meaning("refused", "the database refused to read or link them"),
}
"""Every state and every count of a sweep, in words; commands, the page and `explain` use these."""

_SYNTHETIC = (
    "if Mailglass sent the message, no delivery ever will: for this provider it stores an id that it made up"
    " (mailglass-synthetic-…)"
)
_SEVERAL = "several deliveries have the id, and nothing shows which one is meant"
_RECIPIENT_LOST = (
    "the event was about one recipient, whose address is no longer known, so no delivery is chosen: it was erased, or"
    " lost because an address is kept only while its orphan is open"
)
_RECIPIENT_ERASED = (
    "only deliveries to other recipients have the id; the recipient of at least one was erased, and this event may be"
    " about that person"
)
_REMEDY_RECIPIENT_ERASED = f"nothing, if it is about a person who was erased; otherwise, {_BY_HAND}"
NOT_CHECKED = "not checked: it could not be read, so the message id alone decides"
"""Of the recipient of an event that is linked all the same."""
_REMEDY_RECIPIENT_LOST = f"no sweep will link it; check the deliveries listed, and {_BY_HAND}"


def short_words(state: str) -> str:
    """Return a state in a few words; a state that this version does not define is returned as it is."""
    return MEANINGS[state].short if state in MEANINGS else state


def why(
    state: EventState, *, provider: str | None = None, recipient_lost: bool = False, recipient_erased: bool = False
) -> str:
    if state == "ambiguous":
        return _RECIPIENT_LOST if recipient_lost else _SEVERAL
    if state == "recipient_mismatch" and recipient_erased:
        return _RECIPIENT_ERASED
    record = providers.record(provider) if provider else None
    if state == "unmatched" and record and record.synthetic_ids:
        return f"{MEANINGS[state].sentence}; {_SYNTHETIC}"
    return MEANINGS[state].sentence


def remedy(
    state: EventState,
    verdict: EventState | None = None,
    *,
    recipient_lost: bool = False,
    recipient_erased: bool = False,
) -> str | None:
    """Return what has to change so that an event can be linked; None if nothing has to."""
    found = verdict or state
    needed = _REMEDY_RECIPIENT_LOST if found == "ambiguous" and recipient_lost else MEANINGS[found].remedy
    if found == "recipient_mismatch" and recipient_erased:
        needed = _REMEDY_RECIPIENT_ERASED
    if state == "expired" and found != "expired":
        needed = "; in addition, ".join(filter(None, (MEANINGS["expired"].remedy, needed)))
    return None if needed is None else with_command_name(needed)
