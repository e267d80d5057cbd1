"""Building blocks for providers: parse bodies, times, ids and tags.

A body comes from outside and may hold anything. These functions return values that can be recorded, or raise
`InvalidWebhookError`; no message repeats a value.
"""

from __future__ import annotations

import binascii
import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any, TypeVar

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.rules.smtp import smtp_status

MAX_DEPTH = 100
"""Greatest depth of nested JSON."""
MAX_FIELDS = 1_000
"""Greatest number of fields of a form."""

MAX_TAGS = 38
MAX_TAG = 255
"""Number of an event's tags, and characters of each, six bytes at most: they always fit into its metadata."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class WebhookRequest:
    """A received webhook, with the names of its headers in lower case. Its body is parsed once, also if that fails."""

    body: bytes
    headers: Mapping[str, str]
    content_type: str = ""
    url: str | None = None

    @cached_property
    def _json(self) -> Any:
        return _value_or_error(parse_json, self.body)

    @cached_property
    def _form(self) -> list[tuple[str, str]] | InvalidWebhookError:
        return _value_or_error(_parse_form, self.body)

    @property
    def json(self) -> Any:
        """The value of the body, which must be JSON."""
        return _value_or_raise(self._json)

    @property
    def form(self) -> list[tuple[str, str]]:
        """The fields of a URL-encoded form, in order."""
        return _value_or_raise(self._form)

    def object(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object."""
        return require_object(self.json, "the body")

    def header(self, name: str) -> str:
        """Return a header; raise `SignatureError` if it is missing or empty."""
        value = self.headers.get(name.lower())
        if not value:
            raise SignatureError(f"the header {name} is missing")
        return value


def _value_or_error(parse: Callable[[bytes], Value], body: bytes) -> Value | InvalidWebhookError:
    """Return the error as a value: a stranger's body is read once for each of a provider's secrets."""
    try:
        return parse(body)
    except InvalidWebhookError as error:
        return error


def _value_or_raise(value: Value | InvalidWebhookError) -> Value:
    if isinstance(value, InvalidWebhookError):
        raise InvalidWebhookError(str(value))
    return value


def _parse_form(body: bytes) -> list[tuple[str, str]]:
    if body.count(b"&") >= MAX_FIELDS or not body.isascii():
        raise InvalidWebhookError("the body is not a form")
    pairs = (field.partition(b"=") for field in body.split(b"&") if field)
    return [(_decode_text(name), _decode_text(value)) for name, _, value in pairs]


def _decode_text(text: bytes) -> str:
    return decode_form_value(text).decode("utf-8", "replace")


def decode_form_value(text: bytes) -> bytes:
    """Return a name or a value of a URL-encoded form as its bytes; raise `InvalidWebhookError` if it is malformed."""
    return percent_decode(text.replace(b"+", b" "))


def percent_decode(text: bytes) -> bytes:
    """Return the bytes of a percent-encoded text; raise `InvalidWebhookError` if an escape is malformed.

    Strangers may send any number of escapes. Decoded as quoted-printable, they cost a tenth of what `urllib` takes.
    """
    if _MALFORMED_ESCAPE.search(text):
        raise InvalidWebhookError("it is not a percent-encoded text")
    return binascii.a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))


_MALFORMED_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text; a byte that its encoding does not have is replaced."""
    try:
        value = json.loads(text.decode(json.detect_encoding(text), "replace") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError):
        raise InvalidWebhookError("the body is not JSON") from None
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _CONTAINERS
        ]
    if not level:
        return value
    raise InvalidWebhookError(f"the body is nested more than {MAX_DEPTH} levels deep")


_CONTAINERS = (dict, list)


def require_object(value: object, name: str) -> dict[str, Any]:
    """Return *value* if it is a JSON object; else raise `InvalidWebhookError`, which names it."""
    if isinstance(value, dict):
        return value
    raise InvalidWebhookError(f"{name} is not a JSON object")


def require_list(value: object, name: str) -> list[Any]:
    """Return *value* if it is a JSON list; else raise `InvalidWebhookError`, which names it."""
    if isinstance(value, list):
        return value
    raise InvalidWebhookError(f"{name} is not a JSON list")


def get_path(value: object, *path: str) -> Any:
    """Return the value at a path of keys, or None if one of them is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def build_event(
    payload: object,
    *,
    type: str,  # noqa: A002 - the event's field
    at: dt.datetime | None = None,
    id: object = None,  # noqa: A002 - the event's field
    message_id: object = None,
    recipient: object = None,
    reason: str | None = None,
    bounce: Bounce | None = None,
    reply: object = None,
    smtp_message_id: object = None,
    tags: object = (),
    metadata: Mapping[str, Any] | None = None,
) -> WebhookEvent:
    """Return one event that `record_webhook` accepts.

    Args:
        payload: The provider's payload; its digest is the event's id if *id* is missing.
        type: The type; an unknown one becomes `unknown`.
        at: When it happened, with a time zone; None is now.
        id: The provider's id of the event, if it has one.
        message_id: The id of the message, a text, an integer or None.
        recipient: The recipient, a string or None.
        reason: Why a message was rejected or bounced; an unknown reason becomes `other`. A complaint's is `spam`.
        bounce: `hard` or `soft`, if the payload says so.
        reply: The reply of the recipient's server, as text; only the digits of its codes are stored, and none for a
            message that was not sent.
        smtp_message_id: The Message-ID header, or another id from the provider's SMTP server, if it is a text.
        tags: The message's tags.
        metadata: Further metadata of the event, such as `MACHINE`, without personal data.
    """
    if isinstance(message_id, bool) or not isinstance(message_id, _ID_OR_NONE):
        raise InvalidWebhookError("the message's id is neither a string nor a number")
    if recipient is not None and not isinstance(recipient, str):
        raise InvalidWebhookError("the recipient is not a string")
    return WebhookEvent(
        type=type if type in TYPES else "unknown",
        occurred_at=at or dt.datetime.now(dt.UTC),
        provider_event_id=make_event_id(id, payload),
        message_id=None if message_id == "" else message_id,
        recipient=recipient or None,
        reject_reason="spam" if type == "complained" else reason if reason in _REASONS else "other",
        bounce=bounce,
        smtp_status=None if reply is None or type == "suppressed" else smtp_status(reply),
        smtp_message_id=smtp_message_id if isinstance(smtp_message_id, str) and smtp_message_id.strip() else None,
        metadata=metadata_of_tags(tags) | dict(metadata) if metadata else metadata_of_tags(tags),
    )


_REASONS = (None, *REJECT_REASONS)
_ID = (str, int)
_ID_OR_NONE = (str, int, NoneType)
"""Tuples, because `isinstance` with a union of types takes twice as long, for each event."""

MACHINE = {"machine": True}
"""Metadata of an open or a click that the provider attributes to a machine, such as a mail client's proxy."""


def join_reply(code: object, text: object) -> str:
    """Return a server's reply that stands in two fields, code and text, as one text."""
    parts = (part for part in (code, text) if isinstance(part, str | int) and not isinstance(part, bool))
    return " ".join(map(str, parts))


def first_reply(*texts: object) -> object:
    """Return the first text that begins with the codes of an SMTP reply, or None."""
    return next((text for text in texts if smtp_status(text)), None)


def make_event_id(provider_id: object, payload: object) -> str:
    """Return an event's id, which is the same when a webhook is repeated and names no person.

    It is the provider's own id, or a digest of *payload* if that is missing or looks like an address.
    """
    text = str(provider_id).strip() if isinstance(provider_id, _ID) and not isinstance(provider_id, bool) else ""
    return text if text and not contains_address(text) else digest([provider_id, payload] if text else payload)


def digest(payload: object) -> str:
    """Return a digest of a payload, the same in any order of its keys."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, default=str).encode()).hexdigest()


def metadata_of_tags(tags: object) -> dict[str, Any]:
    """Return an event's metadata with its tags, but without tags that hold an address: the ledger cannot be erased."""
    if not tags:
        return {}
    if isinstance(tags, str):
        return {} if contains_address(tags) else {"tags": [tags[:MAX_TAG]]}
    values: Sequence[object] = tags if isinstance(tags, list | tuple) else ()
    texts = [tag[:MAX_TAG] for tag in values if isinstance(tag, str) and tag and not contains_address(tag)]
    return {"tags": texts[:MAX_TAGS]} if texts else {}


def format_named_tags(tags: object) -> list[str]:
    """Return named tags, an object of texts or of lists of texts, as `name:value`."""
    items = tags.items() if isinstance(tags, dict) else ()
    return [
        f"{name}:{value}"
        for name, values in items
        for value in (values if isinstance(values, list) else [values])
        if isinstance(value, str)
    ]


def parse_epoch(number: object, per_second: int = 1) -> dt.datetime | None:
    """Return the time of a Unix timestamp, a number or its text, or None if it is no time.

    Args:
        number: Seconds since 1970, or fractions of them.
        per_second: Units in a second: 1,000 for milliseconds.
    """
    try:
        return dt.datetime.fromtimestamp(float(number) / per_second, dt.UTC)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def parse_iso(text: object) -> dt.datetime | None:
    """Return the time of an ISO 8601 text, in UTC if it names no zone, or None if it is no time."""
    try:
        time = dt.datetime.fromisoformat(_MICROSECONDS.sub(r"\1", text))  # type: ignore[call-overload]
        return (time if time.utcoffset() is not None else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError):
        return None


_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
"""Python parses no more than six digits of a second; Postmark sends seven."""
