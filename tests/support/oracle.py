"""The design's rules in plain Python, written from the design and not from the package, to test against."""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

OWN_SIDE = ["unknown", "queued", "sent", "dispatched"]
PROVIDER_SIDE = [
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
ALL_TYPES = OWN_SIDE + PROVIDER_SIDE
FINAL = {"delivered", "bounced", "complained", "rejected", "failed", "suppressed"}
EARLIEST = ("dispatched_at", "delivered_at", "bounced_at", "complained_at", "suppressed_at")
PROJECTED = ("last_event_type", "last_event_at", "terminal", *EARLIEST)


def moment(text: str | datetime | None) -> datetime | None:
    """Parse a time of Postgres's JSON; a time beyond datetime's range becomes the nearest within it."""
    if text is None or isinstance(text, datetime):
        return text
    if text == "infinity" or text.partition("-")[0] > "9999" or len(text.partition("-")[0]) > 4:
        return datetime.max
    if text == "-infinity" or text.endswith("BC"):
        return datetime.min
    return datetime.fromisoformat(text)


def fold(row: Mapping[str, Any], events: Iterable[tuple[str, datetime, datetime]]) -> dict[str, Any]:
    """Return a delivery's projected columns after `(type, occurred_at, arrival)` events, applied in order."""
    state = {name: row[name] for name in PROJECTED}
    for kind, occurred_at, arrival in events:
        if kind not in ALL_TYPES:
            continue
        impossible = occurred_at - arrival > timedelta(minutes=5) or occurred_at < datetime(2000, 1, 1)
        at = arrival if impossible else occurred_at
        if _weight(kind, at) > _weight(state["last_event_type"], state["last_event_at"]):
            state["last_event_type"], state["last_event_at"] = kind, at
        column = f"{kind}_at"
        if column in EARLIEST and (state[column] is None or at < state[column]):
            state[column] = at
        if kind in FINAL:
            state["terminal"] = True
    return state


def _weight(kind: str, at: datetime) -> tuple[bool, datetime, int]:
    return kind in PROVIDER_SIDE, at, ALL_TYPES.index(kind) if kind in ALL_TYPES else -1


SAME_PROVIDER = {"amazon ses": "ses", "amazon_ses": "ses", "amazonses": "ses", "sendinblue": "brevo"}


def canonical_provider(provider: str) -> str:
    """Return a provider's canonical spelling."""
    return SAME_PROVIDER.get(provider.strip().lower(), provider.strip().lower())


def normalize_recipient(recipient: str) -> str:
    """Return the address of a recipient in the form in which it is compared."""
    text = recipient.strip()
    if text.endswith(">") and "<" in text:
        text = text[text.rindex("<") + 1 : -1]
    local, at, domain = text.strip().rpartition("@")
    return f"{_lower(local)}{at}{_ascii_domain(_lower(domain))}"


def _lower(text: str) -> str:
    """Apply NFC and lower case by character, so that what only looks like ASCII stays different from it."""
    composed = "".join(char if char in "\u037e\u1fef\u212a" else unicodedata.normalize("NFC", char) for char in text)
    return unicodedata.normalize("NFC", "".join(char if char == "\u212a" else char.lower() for char in composed))


def _ascii_domain(domain: str) -> str:
    try:
        encoded = domain.encode("idna").decode()
    except UnicodeError:
        return domain
    return encoded if "xn--" in encoded else domain


def match(orphan: Mapping[str, Any], deliveries: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return the state of an orphan with known candidate ids, and the delivery that it links to."""
    if not orphan["candidate_ids"]:
        return "unmatchable", None
    elsewhere = False
    for candidate in orphan["candidate_ids"]:
        with_id = [
            d
            for d in deliveries
            if d["provider_message_id"] == candidate
            and (d["provider"] is None or canonical_provider(d["provider"]) == canonical_provider(orphan["provider"]))
        ]
        own = [d for d in with_id if d["tenant_id"] == orphan["tenant_id"]]
        if own:
            return _choose(orphan, own)
        elsewhere = elsewhere or bool(with_id)
    return ("tenant_mismatch" if elsewhere else "unmatched"), None


def _choose(orphan: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    if orphan.get("recipient_lost"):
        return "ambiguous", None
    recipient = orphan["recipient"]
    addressed = [
        d for d in own if recipient is None or normalize_recipient(d["recipient"]) == normalize_recipient(recipient)
    ]
    if not addressed:
        return "recipient_mismatch", None
    if len(addressed) > 1 and recipient is not None:
        addressed = [d for d in addressed if d["provider"] is not None]
    return ("matched", addressed[0]["id"]) if len(addressed) == 1 else ("ambiguous", None)


def group_by_retention(
    events: Mapping[str, Mapping[str, Any]], retained: Collection[str], open_: Collection[str]
) -> list[frozenset[str]]:
    """Return the groups of a ledger's events that retention deletes together.

    Args:
        events: The ledger's rows by id, with `is_orphan`.
        retained: The events that are too young, or that a handler still needs.
        open_: The orphans that are open.
    """
    links = {row["idempotency_key"]: row for row in events.values() if row["type"] == "reconciled"}
    together: dict[str, set[str]] = {}
    for id_, row in events.items():
        link = links.get(f"reconciled:{id_}") if row["is_orphan"] else None
        owner = (link or row)["delivery_id"]
        if owner or (row["is_orphan"] and id_ not in open_):
            together.setdefault(owner or id_, set()).add(id_)
    return [frozenset(ids) for ids in together.values() if not ids & set(retained)]
