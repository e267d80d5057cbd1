"""What Postgres and JSON can hold: texts and metadata are repaired, so that no event is lost, or refused by key."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.rules.addresses import holds_address

MAX_TEXT = 4_096
"""Characters of one text in metadata."""
MAX_METADATA_BYTES = 65_536
MAX_DEPTH = 32
MAX_NUMBER_BITS = 1_024

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def plain(value: str | int) -> str:
    """Return a text or an integer as a text; of a member of an enumeration, its value and not its name."""
    return str.__str__(value) if isinstance(value, str) else str(int(value))


def storable(text: str) -> str:
    """Return *text* with U+FFFD for what Postgres cannot store: NUL and halves of surrogate pairs."""
    return _NOT_STORABLE.sub("\ufffd", text)


def metadata(field: str, value: object) -> dict[str, Any]:
    """Return *value* as JSON that Postgres can hold.

    Raises:
        InvalidEventError: It is no mapping, too large, or holds what JSON cannot; the message names *field* and key.
    """
    if not isinstance(value, Mapping):
        raise InvalidEventError(f"{field} must be a mapping")
    kept: dict[str, Any] = _json(field, value, 0)
    if len(json.dumps(kept, ensure_ascii=False).encode()) > MAX_METADATA_BYTES:
        raise InvalidEventError(f"{field} is larger than {MAX_METADATA_BYTES:,} bytes as JSON; keep only what you need")
    return kept


def without_addresses(value: Any) -> Any:
    """Return a JSON value without the texts, and the keys, that look like an e-mail address."""
    if isinstance(value, dict):
        return {k: without_addresses(v) for k, v in value.items() if not (_is_address(k) or _is_address(v))}
    if isinstance(value, list):
        return [without_addresses(v) for v in value if not _is_address(v)]
    return value


def _is_address(value: object) -> bool:
    return isinstance(value, str) and holds_address(value)


def _json(path: str, value: object, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidEventError(f"{path[:100]}… is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_key(path, k): _json(f"{path}[{_shown(k)}]", v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(f"{path}[{n}]", v, depth + 1) for n, v in enumerate(value)]
    return _scalar(path, value)


def _key(path: str, key: object) -> str:
    if not isinstance(key, str):
        raise InvalidEventError(f"{path} has a key that is not a text")
    return storable(plain(key))[:MAX_TEXT]


def _shown(key: object) -> str:
    """Return a key for an error; one that looks like an address is not shown."""
    return "…" if _is_address(key) else repr(storable(str(key))[:50])


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _scalar(path: str, value: object) -> str | int | float | None:
    match value:
        case None | bool():
            return value
        case int() if value.bit_length() <= MAX_NUMBER_BITS:
            return int(value)
        case int():
            raise InvalidEventError(f"{path} is a number of more than {MAX_NUMBER_BITS:,} bits")
        case float():
            return float(value) if math.isfinite(value) else None
        case str():
            return _short(storable(plain(value)))
        case dt.date() | dt.time():
            return storable(value.isoformat())
        case UUID():
            return str(value)
    raise InvalidEventError(f"{path} is a {type(value).__name__}, which JSON cannot hold")
