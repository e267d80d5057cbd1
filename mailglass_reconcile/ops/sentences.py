"""What `explain` says of each state: why, and what would have to be different."""

from __future__ import annotations

SENTENCES = {
    "matched": "its delivery is there; the next sweep links it",
    "unmatched": "no delivery has any of its ids yet",
    "unmatchable": "it has no provider, or no id that can be used",
    "ambiguous": "its id names several deliveries, and it does not say which recipient it is about",
    "tenant_mismatch": (
        "its id names only another tenant's deliveries; if its tenant is `default`, perhaps Mailglass lacks"
        " resolve_webhook_tenant"
    ),
    "recipient_mismatch": "its id names only deliveries to other recipients",
    "waiting": "it is still in its grace period; a later sweep looks at it",
    "expired": "it is older than the maximum age, so no sweep looks at it any more",
    "linked": "it is linked",
    "settled": "a `reconciled` event without a delivery settled it",
    "no_orphan": "it is not an orphan: it was stored with its delivery, or needs none",
    "missing": "it is an orphan, but the table of open orphans lacks it: run `mailglass-reconcile prune`",
    "unknown": "the ledger has no event with this id",
}

LOST = (
    "it was about one recipient, whose address is not known any more, so no delivery is chosen: the address is kept"
    " only while an orphan is open"
)

MADE_UP = ("mailjet", "sparkpost")
MADE_UP_ID = (
    "if Mailglass sent the message, none will: for this provider its delivery's id is one that Mailglass made up"
    " (mailglass-synthetic-…)"
)

REMEDIES = {
    "unmatched": (
        "a delivery of the event's tenant has to be stored under one of these ids, with the event's provider or none;"
        " if other software sent the message through your account, there will be none"
    ),
    "unmatchable": "the event has to name a provider, and an id in one of the places read",
    "ambiguous": "the event has to name its recipient, or only one of the deliveries may carry the event's provider",
    "tenant_mismatch": (
        "event and delivery need the same tenant: let the webhook find its tenant (in Mailglass,"
        " resolve_webhook_tenant); events that are stored already keep theirs"
    ),
    "recipient_mismatch": "a delivery to the event's recipient has to be stored under one of these ids",
    "expired": (
        "MAILGLASS_MAX_AGE_MINUTES has to be more than the event's age; `mailglass-reconcile prune` then opens it again"
    ),
    "missing": "run `mailglass-reconcile prune`, which repairs the table of open orphans from the ledger",
}

REMEDY_OF_LOST = "nothing will link it; look at the deliveries named, and correct the right one by hand"


def why(state: str, *, provider: str | None, lost: bool) -> str:
    """Return why an event is in *state*."""
    if state == "ambiguous" and lost:
        return LOST
    if state == "unmatched" and provider in MADE_UP:
        return f"{SENTENCES[state]}; {MADE_UP_ID}"
    return SENTENCES[state]


def remedy(state: str, verdict: str, *, lost: bool) -> str | None:
    """Return what would have to be different for an event to be linked; None if nothing.

    Args:
        state: The event's state.
        verdict: What a sweep that looked at it would find, whatever its age.
        lost: Whether its recipient is not known any more.
    """
    needed = REMEDY_OF_LOST if verdict == "ambiguous" and lost else REMEDIES.get(verdict)
    if state != "expired":
        return needed
    return f"{REMEDIES[state]}; besides, {needed}" if needed else REMEDIES[state]
