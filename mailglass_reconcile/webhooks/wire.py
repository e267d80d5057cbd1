"""What providers' webhooks have in common: bodies, times, ids and tags to read, and signatures to check.

A body comes from outside and may hold anything. The functions here return what can be recorded, or raise
`InvalidWebhookError` or `SignatureError`; no message repeats a value.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.addresses import holds_address
from mailglass_reconcile.rules.event_types import REJECT_REASONS, TYPES
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.rules.smtp import smtp_status

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

FRESH_SECONDS = 300
"""How old a signature may be if the provider signs each attempt for itself."""

MAX_DEPTH = 100
"""How deeply JSON may be nested."""
MAX_FIELDS = 1_000
MAX_ESCAPES = 1_000_000
"""Fields of a form, and characters that are written as `%` and digits: a sixth of what Mandrill sends."""

MAX_TAGS = 50
MAX_TAG = 255
MAX_TAGS_BYTES = 60_000
"""Tags of an event that are kept, characters of each, and bytes of all as JSON: they fit into an event's metadata."""
FEW_TAGS = 38
"""So many always fit: a character takes at most six bytes."""


class Signed(NamedTuple):
    """A webhook as a provider sends it."""

    body: bytes
    headers: Mapping[str, str]


class Authentication(NamedTuple):
    """How a provider's webhooks are verified.

    Attributes:
        signature: Where the signature is.
        words: What it is, for the documentation.
        verify: Called with a request, a secret and the time in seconds since 1970; raises `SignatureError`.
        usable: Raises `ConfigurationError` unless requests can be verified with a secret.
        sign: Returns the request that carries a body, signed with a secret at a time, for the webhook's address; None
            if only the provider has the key.
    """

    signature: Signature
    words: str
    verify: Callable[[Request, str, float], None]
    usable: Callable[[str], object] | None = None
    sign: Callable[[bytes, str, float, str | None], Signed] | None = None


class Signature(Enum):
    """Where the signature of a provider's webhooks is, which decides what strangers can make us do."""

    IN_HEADERS = "a user name and a password: nothing of the body is needed"
    OVER_BODY = "over the body, which is not parsed to find it"
    IN_BODY = "in the body, which has to be parsed to find it"
    ANYWHERE = "only an application's own reader knows, which may do anything to check it"


@dataclass(frozen=True)
class Request:
    """A webhook as it was received; the names of headers are in lower case. Its body is parsed once."""

    body: bytes
    headers: Mapping[str, str]
    content_type: str = ""
    url: str | None = None

    @cached_property
    def _json(self) -> Any:
        return from_json(self.body)

    @cached_property
    def _form(self) -> list[tuple[str, str]]:
        try:
            if self.body.count(b"%") > MAX_ESCAPES:
                raise InvalidWebhookError("the body is not a form")
            return parse_qsl(self.body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise InvalidWebhookError("the body is not a form") from None

    def json(self) -> Any:
        return self._json

    def object(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object."""
        return as_object(self.json(), "the body")

    def form(self) -> list[tuple[str, str]]:
        """Return the fields of a URL-encoded form, in their order."""
        return self._form

    def header(self, name: str) -> str:
        """Return a header that a signature needs."""
        value = self.headers.get(name.lower())
        if not value:
            raise SignatureError(f"the header {name} is missing")
        return value


def from_json(text: bytes | str) -> Any:
    """Return a JSON text's value; a byte that is not of its encoding is replaced, and costs nothing else."""
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


def as_object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise InvalidWebhookError(f"{what} is not a JSON object")


def as_list(value: object, what: str) -> list[Any]:
    if isinstance(value, list):
        return value
    raise InvalidWebhookError(f"{what} is not a JSON list")


def dug(value: object, *path: str) -> Any:
    """Return what stands at a path of keys, or None if one of them is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def event(
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
    kept: Mapping[str, Any] | None = None,
) -> WebhookEvent:
    """Return one event that `record_webhook` accepts.

    Args:
        payload: What the provider has sent about it: without an id of its own, its digest is the event's id.
        type: Its type; one that is not known becomes `unknown`.
        at: When it happened, with a time zone; None is now.
        id: The provider's id of the event, if it has one.
        message_id: The id of the message, a text, an integer or None.
        recipient: The recipient, a string or None.
        reason: Why a message was rejected or bounced; one that is not known becomes `other`. A complaint's is `spam`.
        bounce: Whether a bounce is hard or soft, if the payload says so.
        reply: The reply of the recipient's server, as text: only the digits of its codes are kept. There is none for a
            message that was not sent.
        smtp_message_id: The Message-ID header, or another id from the provider's SMTP server, if it is a text.
        tags: The message's tags.
        kept: What else the event's metadata holds, such as `MACHINE`; it names no person.
    """
    if isinstance(message_id, bool) or not isinstance(message_id, _ID_OR_NONE):
        raise InvalidWebhookError("the message's id is neither a string nor a number")
    if recipient is not None and not isinstance(recipient, str):
        raise InvalidWebhookError("the recipient is not a string")
    return WebhookEvent(
        type=type if type in TYPES else "unknown",
        occurred_at=at or dt.datetime.now(dt.UTC),
        provider_event_id=event_id(id, payload),
        message_id=None if message_id == "" else message_id,
        recipient=recipient or None,
        reject_reason="spam" if type == "complained" else reason if reason in _REASONS else "other",
        bounce=bounce,
        smtp_status=None if reply is None or type == "suppressed" else smtp_status(reply),
        smtp_message_id=smtp_message_id if isinstance(smtp_message_id, str) and smtp_message_id.strip() else None,
        metadata=metadata(tags) | dict(kept) if kept else metadata(tags),
    )


_REASONS = (None, *REJECT_REASONS)
_ID = (str, int)
_ID_OR_NONE = (str, int, NoneType)
"""Tuples: a union of types takes twice as long to check, for each event."""

MACHINE = {"machine": True}
"""What is kept of an open or a click that the provider attributes to a machine, such as a mail client's proxy."""


def with_code(code: object, text: object) -> str:
    """Return the reply of a server whose code has a field of its own; its text may begin with codes, too."""
    return " ".join(str(one) for one in (code, text) if isinstance(one, str | int) and not isinstance(one, bool))


def reply(*texts: object) -> object:
    """Return the first of some texts that begins with the codes of an SMTP reply, or None."""
    return next((text for text in texts if smtp_status(text)), None)


def event_id(given: object, payload: object) -> str:
    """Return an event's id, which is the same when a webhook is repeated and names no person.

    That is the provider's own id; a digest of *payload*, what it has sent, if there is none or it looks like an
    address.
    """
    text = str(given).strip() if isinstance(given, _ID) and not isinstance(given, bool) else ""
    return text if text and not holds_address(text) else digest([given, payload] if text else payload)


def digest(payload: object) -> str:
    """Return a digest of what a provider has sent, the same in any order of its keys."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, default=str).encode()).hexdigest()


def metadata(tags: object) -> dict[str, Any]:
    """Return what the ledger keeps of an event, which cannot be erased: tags, but none with an address."""
    if not tags:
        return {}
    if isinstance(tags, str):
        return {} if holds_address(tags) else {"tags": [tags[:MAX_TAG]]}
    listed: Sequence[object] = tags if isinstance(tags, list | tuple) else ()
    texts = [tag[:MAX_TAG] for tag in listed if isinstance(tag, str) and tag and not holds_address(tag)]
    if len(texts) <= FEW_TAGS:
        return {"tags": texts} if texts else {}
    kept: list[str] = []
    room = MAX_TAGS_BYTES
    for tag in texts:
        size = len(_as_json(tag).encode("utf-8", "replace"))
        if size <= room and len(kept) < MAX_TAGS:
            kept.append(tag)
            room -= size
    return {"tags": kept} if kept else {}


_as_json = json.JSONEncoder(ensure_ascii=False).encode


def named_tags(tags: object) -> list[str]:
    """Return tags that have names, an object of texts or of lists of texts, as `name:value`."""
    each = tags.items() if isinstance(tags, dict) else ()
    return [
        f"{name}:{value}"
        for name, values in each
        for value in (values if isinstance(values, list) else [values])
        if isinstance(value, str)
    ]


def epoch(number: object, per_second: int = 1) -> dt.datetime | None:
    """Return the time of seconds since 1970 (or parts of them), a number or its text, or None if it is no time."""
    try:
        return dt.datetime.fromtimestamp(float(number) / per_second, dt.UTC)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def iso(text: object) -> dt.datetime | None:
    """Return the time of an ISO 8601 text, in UTC if it names no zone, or None if it is no time."""
    try:
        time = dt.datetime.fromisoformat(_MICROSECONDS.sub(r"\1", text))  # type: ignore[call-overload]
        return (time if time.utcoffset() is not None else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError):
        return None


_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
"""Python reads no more than six digits of a second; Postmark sends seven."""


# Signatures -----------------------------------------------------------------------------------------------------------


def equal(given: str | bytes, expected: str | bytes) -> bool:
    """Whether two texts are equal, in a time that does not depend on where they differ."""
    one, other = (text.encode("utf-8", "replace") if isinstance(text, str) else text for text in (given, expected))
    return hmac.compare_digest(one, other)


def require(matches: bool) -> None:
    """Raise `SignatureError` unless a signature *matches*."""
    if not matches:
        raise SignatureError("the signature does not match")


def as_json(body: bytes, **headers: str) -> Signed:
    """Return a request with a JSON body; `_` in the name of a header stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Signed(body, {"Content-Type": "application/json", **named})


def hex_hmac(text: bytes, secret: str) -> str:
    """Return the HMAC-SHA256 of a text, in hexadecimal digits."""
    return hmac.new(secret.encode(), text, "sha256").hexdigest()


def hexadecimal(request: Request, header: str, secret: str) -> None:
    """Check a header that holds the HMAC-SHA256 of the body, in hexadecimal digits."""
    require(equal(request.header(header).strip().lower(), hex_hmac(request.body, secret)))


def hmac_in(header: str) -> Authentication:
    """Return the authentication by a header that holds the HMAC-SHA256 of the body, in hexadecimal digits."""
    return Authentication(
        Signature.OVER_BODY,
        "HMAC-SHA256",
        lambda request, secret, now: hexadecimal(request, header, secret),
        sign=lambda body, secret, at, url: as_json(body, **{header: hex_hmac(body, secret)}),
    )


def credentials(secret: str) -> None:
    """Check that a secret is `user:password`; one of the two may be empty."""
    if ":" not in secret:
        raise ConfigurationError("the secret must be USER:PASSWORD, as in the address that the provider calls")
    if secret == ":":  # noqa: S105 - none at all
        raise ConfigurationError("the user name and the password are empty")


def basic(request: Request, secret: str, now: float) -> None:
    """Check HTTP basic authentication: *secret* is `user:password`."""
    credentials(secret)
    scheme, _, given = request.header("Authorization").partition(" ")
    if scheme.lower() != "basic" or not equal(decoded(given.strip()), secret):
        raise SignatureError("the user name or the password is wrong")


def signed_basic(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request with HTTP basic authentication."""
    return as_json(body, Authorization=f"Basic {base64.b64encode(secret.encode()).decode()}")


BASIC = Authentication(Signature.IN_HEADERS, "user and password", basic, credentials, signed_basic)
"""Of providers that sign nothing."""


def svix_key(secret: str) -> bytes:
    """Return the key of Standard Webhooks."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ConfigurationError("the secret must be `whsec_` and base64, as the provider's page shows it")
    return key


def svix(request: Request, secret: str, now: float) -> None:
    """Check the signature of Standard Webhooks, which Svix makes for each attempt.

    Followed: https://docs.svix.com/receiving/verifying-payloads/how-manual and https://www.standardwebhooks.com.
    """
    key = svix_key(secret)
    prefix = "svix" if "svix-id" in request.headers else "webhook"
    id_, at, given = (request.header(f"{prefix}-{name}") for name in ("id", "timestamp", "signature"))
    fresh(at, now)
    expected = _svix_signature(key, id_, at, request.body)
    require(any(equal(one, expected) for one in given.split(" ")))


def signed_svix(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request that Svix signs at a time; a repeated body has the same id."""
    id_, time = f"msg_{hashlib.sha256(body).hexdigest()[:24]}", str(int(at))
    made = _svix_signature(svix_key(secret), id_, time, body)
    return as_json(body, svix_id=id_, svix_timestamp=time, svix_signature=made)


def _svix_signature(key: bytes, id_: str, at: str, body: bytes) -> str:
    made = hmac.digest(key, f"{id_}.{at}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(made).decode()}"


SVIX = Authentication(Signature.OVER_BODY, "Svix (HMAC-SHA256)", svix, svix_key, signed_svix)


def fresh(at: str, now: float, seconds: float = FRESH_SECONDS) -> None:
    """Check that a signature was made within *seconds* of now."""
    time = epoch(at)
    if time is None or abs(now - time.timestamp()) > seconds:
        raise SignatureError("the signature is too old, or from the future")


def decoded(text: str) -> bytes:
    """Return what a base64 text holds; what is no base64 is a wrong signature."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise SignatureError("the signature is not base64") from None


@lru_cache(maxsize=64)
def public_key(secret: str) -> PublicKeyTypes:
    """Return a public key, given as base64, as a provider's page shows it, or as PEM."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415
    except ImportError:
        raise missing() from None
    try:
        lines = [line for line in secret.strip().splitlines() if not line.startswith("-----")]
        return load_der_public_key(base64.b64decode("".join(lines), validate=True))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("the secret must be the provider's public key, as its page shows it") from None


def missing() -> ConfigurationError:
    """Return the error for a signature or a form that needs a package of the extra."""
    return ConfigurationError("this webhook needs more packages: pip install 'mailglass-reconcile[webhooks]'")


def rsa_key(secret: str) -> RSAPublicKey:
    """Return a public key of RSA, given as `public_key` takes it."""
    key = public_key(secret)
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415 - the key has needed it

    if not isinstance(key, RSAPublicKey):
        raise ConfigurationError("the secret must be an RSA public key")
    return key


def rsa(key: PublicKeyTypes, signature: bytes, signed: bytes, *, sha1: bool) -> None:
    """Check an RSA signature (PKCS #1 v1.5) over SHA-256, or over SHA-1."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415

    if not isinstance(key, RSAPublicKey):
        raise SignatureError("the certificate has no RSA key")
    try:
        key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA1() if sha1 else hashes.SHA256())  # noqa: S303
    except InvalidSignature:
        require(False)
