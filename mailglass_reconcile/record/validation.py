"""Validation of the fields that writers accept: invalid values are refused before anything is written.

What Postgres or JSON cannot hold is replaced instead, so that no event is lost. A refusal names field and reason,
never the value. `docs/api.md`, "Accepted input", lists what is refused and what is repaired.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from mailglass_reconcile.errors import ConfigurationError, InvalidEventError
from mailglass_reconcile.rules import addresses, provider_rules, smtp
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES
from mailglass_reconcile.rules.events import BOUNCES, STREAMS
from mailglass_reconcile.rules.humanize import did_you_mean
from mailglass_reconcile.rules.matching import MAX_ID_LENGTH, is_usable

SENT_TYPES = ("dispatched", "failed", "rejected")
MAX_RECIPIENT_LENGTH = 1_000


def event_type(field: str, value: object) -> str:
    """Return *value* if it is a type that a writer may record."""
    return _one_of(field, value, "type", TYPES)


def reject_reason(field: str, value: object) -> str | None:
    """Return *value* if it is None or a known reason."""
    return None if value is None else _one_of(field, value, "reason", REJECT_REASONS)


def bounce(field: str, value: object) -> str | None:
    """Return *value* if it is None or a kind of bounce."""
    return None if value is None else _one_of(field, value, "bounce", BOUNCES)


def smtp_status(field: str, value: object) -> str | None:
    """Return the codes of an SMTP reply; its text is not recorded."""
    if not isinstance(value, str | None):
        raise InvalidEventError(f"{field} must be a string or None")
    return smtp.smtp_status(value)


def _one_of(field: str, value: object, noun: str, choices: Collection[str]) -> str:
    if isinstance(value, str) and value in choices:
        return to_str(value)
    hint = did_you_mean(value, choices, " ({})") if isinstance(value, str) else ""
    raise InvalidEventError(f"{field} is not a known {noun}{hint}; known {noun}s: {', '.join(choices)}")


def name(field: str, value: object) -> str:
    """Return a tenant's, a provider's or a key's *value*, as it is."""
    if isinstance(value, str) and value.strip() and is_usable(value):
        return to_str(value)
    raise InvalidEventError(f"{field} must be a string of 1 to 512 characters without control characters")


def configured_tenant(field: str, value: object) -> str:
    """Return the tenant that an application's setting or function gave.

    Raises:
        ConfigurationError: It is none. Unlike an invalid event, this is no fault of the provider's, who must repeat.
    """
    try:
        return name(field, value)
    except InvalidEventError as error:
        raise ConfigurationError(str(error)) from None


def stored_tenant(field: str, value: object) -> str:
    """Return a tenant of existing rows, which other programs may have named in any way, as it is."""
    if isinstance(value, str) and value.strip() and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        return to_str(value)
    raise InvalidEventError(f"{field} must be a string that Postgres can store, and not empty")


def free_text(field: str, value: object) -> str:
    """Return a person's text, without an address, which the ledger keeps."""
    text = name(field, value).strip()
    if contains_address(text):
        raise InvalidEventError(f"{field} must not contain an e-mail address: nothing can be erased from the ledger")
    return text


def uuid(field: str, value: object) -> str:
    try:
        return str(UUID(str(value)))
    except ValueError:
        raise InvalidEventError(f"{field} must be a UUID") from None


def provider(field: str, value: object) -> str:
    """Return the canonical spelling of a provider's name, which must not be nearly that of another."""
    canonical = provider_rules.canonical(name(field, value.strip() if isinstance(value, str) else value))
    try:
        provider_rules.check_name(canonical)
    except ValueError as error:
        raise InvalidEventError(f"{field}: {error}") from None
    return canonical


def stream(field: str, value: object) -> str:
    return _one_of(field, value, "stream", STREAMS)


def sent_type(field: str, value: object) -> str:
    """Return *value* if it is a type that a provider's API can answer to a send."""
    return _one_of(field, value, "type", SENT_TYPES)


def to_str(value: object) -> str:
    """Return a value as a plain str: for a member of `class Kind(str, Enum)` its value, not `Kind.BOUNCED`."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def utc(field: str, value: object) -> str:
    """Return a time in UTC, as Postgres reads it."""
    if not isinstance(value, dt.datetime):
        raise InvalidEventError(f"{field} must be a datetime with a time zone")
    if value.utcoffset() is None:
        raise InvalidEventError(f"{field} must have a time zone, or it cannot be known which moment is meant")
    try:
        return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat()
    except OverflowError:
        raise InvalidEventError(f"{field} must be within the years 1 to 9999 in UTC") from None


def event_id(field: str, value: object) -> str:
    """Return a provider's id of an event as a text, whole and as it came."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidEventError(f"{field} must be a string or an integer")
    text = to_str(value).strip()
    if not text:
        raise InvalidEventError(f"{field} must not be empty, because it identifies an event that is sent again")
    return text


def message_id(field: str, value: object) -> str | None:
    """Return a message id as a text that can be stored; an id that is too long stays too long to match."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidEventError(f"{field} must be a string, an integer or None")
    return None if value is None else replace_unstorable(to_str(value))[: MAX_ID_LENGTH + 1]


def sent_message_id(field: str, value: object, *, needed: bool) -> str | None:
    """Return the message id of a send as it is stored, trimmed; None only if none is *needed*."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidEventError(f"{field} must be a string, an integer or None")
    text = "" if value is None else to_str(value).strip()
    if not text and not needed:
        return None
    if not is_usable(text):
        raise InvalidEventError(
            f"{field} must be a string of 1 to 512 characters without control characters, or an integer;"
            " None only if the type is failed or rejected"
        )
    return text


def recipient(field: str, value: object) -> str | None:
    """Return the address of a recipient, without a display name, or None if it is empty."""
    if not isinstance(value, str | None):
        raise InvalidEventError(f"{field} must be a string or None")
    return _to_address(value)[:MAX_RECIPIENT_LENGTH] or None if value else None


def sent_recipient(field: str, value: object) -> str:
    """Return the address of a send's recipient, without a display name, if `erase` can find it."""
    address = _to_address(value) if isinstance(value, str) else ""
    if not address:
        raise InvalidEventError(f"{field} must be an address")
    if len(address) > MAX_RECIPIENT_LENGTH or not addresses.is_single(address):
        raise InvalidEventError(
            f"{field} must be one address of at most {MAX_RECIPIENT_LENGTH:,} characters without control characters;"
            " write a display name as in: Ada Lovelace <address>"
        )
    return address


def _to_address(recipient: str) -> str:
    return addresses.strip_display_name(replace_unstorable(recipient))


MAX_TEXT = 4_096
"""Characters of one text in metadata."""
MAX_METADATA_BYTES = 65_536
MAX_DEPTH = 32

_as_json = json.JSONEncoder(ensure_ascii=False).encode
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def replace_unstorable(text: str) -> str:
    """Replace the characters that Postgres cannot store by U+FFFD: NUL and halves of surrogate pairs."""
    if text.isascii() and "\x00" not in text:  # nearly all, at a fifth of the cost
        return text
    return _NOT_STORABLE.sub("\ufffd", text)


def metadata(field: str, value: object) -> dict[str, Any]:
    """Return *value* as JSON that Postgres can hold."""
    if not isinstance(value, Mapping):
        raise InvalidEventError(f"{field} must be a mapping")
    document: dict[str, Any] = _json(field, value, 0)
    if document and len(_as_json(document).encode()) > MAX_METADATA_BYTES:
        raise InvalidEventError(f"{field} is larger than {MAX_METADATA_BYTES:,} bytes as JSON; keep only what you need")
    return document


def remove_addresses(value: Any) -> Any:
    """Remove the texts, and the keys, of a JSON value that look like an e-mail address."""
    if isinstance(value, dict):
        return {k: remove_addresses(v) for k, v in value.items() if not (_is_address(k) or _is_address(v))}
    if isinstance(value, list):
        return [remove_addresses(v) for v in value if not _is_address(v)]
    return value


def _is_address(value: object) -> bool:
    return isinstance(value, str) and contains_address(value)


def _json(path: str, value: object, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidEventError(f"{path[:100]}… is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_key(path, k): _json(f"{path}[{_describe_key(k)}]", v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(f"{path}[{n}]", v, depth + 1) for n, v in enumerate(value)]
    return _scalar(path, value)


def _key(path: str, key: object) -> str:
    if not isinstance(key, str):
        raise InvalidEventError(f"{path} has a key that is not a string")
    return replace_unstorable(to_str(key))[:MAX_TEXT]


def _describe_key(key: object) -> str:
    """Return a key for an error; one that looks like an address is not shown."""
    return "…" if _is_address(key) else repr(replace_unstorable(str(key))[:50])


def _scalar(path: str, value: object) -> str | int | float | None:
    match value:
        case None | bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case str() | dt.date() | dt.time() | UUID():
            text = replace_unstorable(value.isoformat() if isinstance(value, dt.date | dt.time) else to_str(value))
            return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    raise InvalidEventError(f"{path} is a {type(value).__name__}, which JSON cannot hold")
