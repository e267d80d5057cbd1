"""The fields that a writer accepts: what cannot be recorded is refused before anything is written.

A refusal names the field and the reason, never the value. `docs/recording.md` lists what is refused, what repaired.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record.storing import plain, storable
from mailglass_reconcile.rules import addresses, providers
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES
from mailglass_reconcile.rules.keys import MAX_ID_LENGTH, is_usable
from mailglass_reconcile.rules.wording import did_you_mean

SENT_TYPES = ("dispatched", "failed", "rejected")
STREAMS = ("transactional", "operational", "bulk")


def known_type(field: str, value: object) -> str:
    """Return *value* if it is a type that a writer may record."""
    return _known(field, value, "type", TYPES)


def reject_reason(field: str, value: object) -> str | None:
    """Return *value* if it is None or a known reason."""
    return None if value is None else _known(field, value, "reason", REJECT_REASONS)


def _known(field: str, value: object, noun: str, known: Collection[str]) -> str:
    if isinstance(value, str) and value in known:
        return plain(value)
    hint = did_you_mean(value, known, " ({})") if isinstance(value, str) else ""
    raise InvalidEventError(f"{field} is not a known {noun}{hint}; known {noun}s: {', '.join(known)}")


def name(field: str, value: object) -> str:
    """Return a tenant's, a provider's or a key's *value*, as it is."""
    if isinstance(value, str) and value.strip() and is_usable(value):
        return plain(value)
    raise InvalidEventError(f"{field} must be a text of 1 to 512 characters without control characters")


def provider(field: str, value: object) -> str:
    """Return the canonical spelling of a provider's name."""
    return providers.canonical(name(field, value.strip() if isinstance(value, str) else value))


def stream(field: str, value: object) -> str:
    """Return *value* if it is one of Mailglass's streams."""
    return _known(field, value, "stream", STREAMS)


def sent_type(field: str, value: object) -> str:
    """Return *value* if it says what a provider's API has answered to a send."""
    return _known(field, value, "type", SENT_TYPES)


def utc(field: str, value: object) -> str:
    """Return a time in UTC, as Postgres reads it."""
    if not isinstance(value, dt.datetime):
        raise InvalidEventError(f"{field} must be a datetime with a time zone")
    if value.utcoffset() is None:
        raise InvalidEventError(f"{field} must have a time zone, because nobody can tell which one was meant")
    try:
        return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat()
    except OverflowError:
        raise InvalidEventError(f"{field} must be within the years 1 to 9999 in UTC") from None


def event_id(field: str, value: object) -> str:
    """Return a provider's id of an event as a text, whole and as it came."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidEventError(f"{field} must be a text or an integer")
    text = plain(value).strip()
    if not text:
        raise InvalidEventError(f"{field} must not be empty, because it tells whether an event was recorded already")
    return text


def message_id(field: str, value: object) -> str | None:
    """Return a message id as a text that can be stored; one that is too long stays too long to be matched."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidEventError(f"{field} must be a text, an integer or None")
    return None if value is None else storable(plain(value))[: MAX_ID_LENGTH + 1]


def sent_id(field: str, value: object, *, needed: bool) -> str | None:
    """Return the message id of a send as it is stored, trimmed; None only if none is *needed*."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidEventError(f"{field} must be a text, an integer or None")
    text = "" if value is None else plain(value).strip()
    if not text and not needed:
        return None
    if not is_usable(text):
        raise InvalidEventError(
            f"{field} must be a text of 1 to 512 characters without control characters, or an integer;"
            " None only if the type is failed or rejected"
        )
    return text


def recipient(field: str, value: object) -> str | None:
    """Return the address of a recipient, without a display name, or None if it is empty."""
    if not isinstance(value, str | None):
        raise InvalidEventError(f"{field} must be a text or None")
    return addresses.bare(storable(value or ""))[:MAX_ID_LENGTH] or None
