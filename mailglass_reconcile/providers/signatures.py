"""How webhooks are signed: the authentications that several providers share, and their building blocks.

A signature comes from outside and may hold anything. These functions return, or raise `SignatureError`; no message
repeats a value.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from mailglass_reconcile.errors import ConfigurationError, SignatureError, install_command
from mailglass_reconcile.providers.wire import WebhookRequest, parse_epoch
from mailglass_reconcile.rules.humanize import format_duration

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

MAX_SIGNATURE_AGE_SECONDS = 300
"""Greatest age of a signature, where the provider signs each attempt anew."""
MAX_SIGNATURES = 16
"""Signatures that are compared: while a secret is rotated, there is one for each."""
MIN_KEY = 8
"""Least characters of a key: providers make longer ones, but most do not document how long."""
MIN_SVIX_KEY_BYTES = 24
"""Least size of a key by the specification of Standard Webhooks."""

MIN_HEADER_SECRET = 16
"""Least length of a secret that a static header repeats with each request."""


class ClockError(SignatureError):
    """A signature is right, and its time is too far from this machine's clock."""

    cause = "clock"


class SignedRequest(NamedTuple):
    """A webhook as a provider sends it."""

    body: bytes
    headers: Mapping[str, str]


class Authentication(NamedTuple):
    """How a provider's webhooks are verified.

    Attributes:
        signature: The place of the signature.
        verify: Called with a request, a secret and the time in seconds since 1970; raises `SignatureError`.
        validate_secret: Raises `ConfigurationError` unless requests can be verified with a secret.
        sign: Returns the signed request for a body, a secret, a time and the webhook's URL; None if only the
            provider has the key.
        max_age_seconds: Greatest age of a signed request; None is any age, because no time is signed, or because the
            provider repeats a webhook with its first time.
        signs_url: True if the webhook's public URL is needed to verify it.
    """

    signature: Signature
    verify: Callable[[WebhookRequest, str, float], None]
    validate_secret: Callable[[str], object] | None = None
    sign: Callable[[bytes, str, float, str | None], SignedRequest] | None = None
    max_age_seconds: int | None = None
    signs_url: bool = False


class Signature(Enum):
    """The place of a webhook's signature, which determines how much work an unsigned request costs."""

    IN_HEADERS = "a user name and a password: nothing of the body is needed"
    OVER_BODY = "over the body, which is not parsed to find it"
    IN_BODY = "in the body, which has to be parsed to find it"
    ANYWHERE = "only an application's own reader knows, which may do anything to check it"


def constant_time_equal(left: str | bytes, right: str | bytes) -> bool:
    """Return True if two texts are equal, in a time that does not depend on where they differ."""
    first, second = (text.encode("utf-8", "replace") if isinstance(text, str) else text for text in (left, right))
    return hmac.compare_digest(first, second)


def has_bearer(authorization: bytes, token: str) -> bool:
    """Return True if the value of a header `Authorization` is this bearer token."""
    scheme, _, credentials = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and constant_time_equal(credentials.strip(), token)


def require_match(matches: bool) -> None:
    """Raise `SignatureError` unless the signature *matches*."""
    if not matches:
        raise SignatureError("the signature does not match")


def json_request(body: bytes, **headers: str) -> SignedRequest:
    """Return a signed request with a JSON body; `_` in the name of a header stands for `-`."""
    header_fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return SignedRequest(body, {"Content-Type": "application/json", **header_fields})


def hex_hmac(text: bytes, secret: str) -> str:
    """Return the HMAC-SHA256 of a text, in hexadecimal digits."""
    return hmac.new(secret.encode(), text, "sha256").hexdigest()


def verify_hex_hmac(request: WebhookRequest, header: str, secret: str) -> None:
    """Verify a header that holds the HMAC-SHA256 of the body, in hexadecimal digits."""
    require_match(constant_time_equal(request.header(header).strip().lower(), hex_hmac(request.body, secret)))


def hex_hmac_authentication(header: str) -> Authentication:
    """Return the authentication by a header that holds the HMAC-SHA256 of the body, in hexadecimal digits."""
    return Authentication(
        Signature.OVER_BODY,
        lambda request, secret, now: verify_hex_hmac(request, header, secret),
        validate_key,
        sign=lambda body, secret, at, url: json_request(body, **{header: hex_hmac(body, secret)}),
    )


def validate_key(secret: str) -> None:
    """Raise `ConfigurationError` if a secret is too short for a key that a provider makes and signs with."""
    if len(secret) < MIN_KEY:
        raise ConfigurationError(f"the secret must be the provider's key: it has fewer than {MIN_KEY} characters")


def validate_credentials(secret: str) -> None:
    """Raise `ConfigurationError` unless a secret is `user:password`, with neither empty."""
    if ":" not in secret:
        raise ConfigurationError("the secret must be USER:PASSWORD, as in the address that the provider calls")
    if not all(secret.partition(":")):
        raise ConfigurationError("the user name or the password is empty")


def verify_basic(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify HTTP basic authentication: *secret* is `user:password`."""
    validate_credentials(secret)
    scheme, _, credentials = request.header("Authorization").partition(" ")
    if scheme.lower() != "basic" or not constant_time_equal(b64decode_or_reject(credentials.strip()), secret):
        raise SignatureError("the user name or the password is wrong")


def sign_basic(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    """Return a request with HTTP basic authentication."""
    return json_request(body, Authorization=f"Basic {base64.b64encode(secret.encode()).decode()}")


BASIC = Authentication(Signature.IN_HEADERS, verify_basic, validate_credentials, sign_basic)
"""Authentication of the providers that sign nothing."""


def decode_svix_key(secret: str) -> bytes:
    """Return the key that a secret of Standard Webhooks encodes."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if len(key) < MIN_SVIX_KEY_BYTES:
        raise ConfigurationError(
            f"the secret must be `whsec_` and base64 of at least {MIN_SVIX_KEY_BYTES} bytes, as the provider's page"
            " shows it"
        )
    return key


def verify_svix(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature of Standard Webhooks, which Svix makes for each attempt.

    Followed: https://docs.svix.com/receiving/verifying-payloads/how-manual and https://www.standardwebhooks.com.
    """
    key = decode_svix_key(secret)
    prefix = "svix" if "svix-id" in request.headers else "webhook"
    id_, timestamp, signatures = (request.header(f"{prefix}-{name}") for name in ("id", "timestamp", "signature"))
    expected = _svix_signature(key, id_, timestamp, request.body)
    signed = signatures.split(" ", MAX_SIGNATURES)
    require_match(any(constant_time_equal(signature, expected) for signature in signed))
    check_timestamp(timestamp, now)


def sign_svix(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    """Return a request signed as Svix does at a time; a repeated body has the same id."""
    id_, timestamp = f"msg_{hashlib.sha256(body).hexdigest()[:24]}", str(int(at))
    signature = _svix_signature(decode_svix_key(secret), id_, timestamp, body)
    return json_request(body, svix_id=id_, svix_timestamp=timestamp, svix_signature=signature)


def _svix_signature(key: bytes, id_: str, timestamp: str, body: bytes) -> str:
    digest = hmac.digest(key, f"{id_}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


SVIX = Authentication(Signature.OVER_BODY, verify_svix, decode_svix_key, sign_svix, MAX_SIGNATURE_AGE_SECONDS)


def check_timestamp(timestamp: str, now: float, seconds: float = MAX_SIGNATURE_AGE_SECONDS) -> None:
    """Raise `ClockError` unless a signature, which was found to be right, was made within *seconds* of now."""
    time = parse_epoch(timestamp)
    if time is None:
        raise SignatureError("the signature has no time")
    age = now - time.timestamp()
    if abs(age) > seconds:
        raise ClockError(
            f"the signature is right, but its time is {format_duration(abs(age))} {'before' if age > 0 else 'after'}"
            " this machine's clock: set the clock, unless the webhook is that old"
        )


def b64decode_or_reject(text: str | bytes) -> bytes:
    """Return the bytes of a base64 text; raise `SignatureError` if it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise SignatureError("the signature is not base64") from None


@lru_cache(maxsize=64)
def load_public_key(secret: str) -> PublicKeyTypes:
    """Return the public key of a secret: base64, as a provider's page shows it, or PEM."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415
    except ImportError:
        raise extra_missing_error() from None
    try:
        lines = [line for line in secret.strip().splitlines() if not line.startswith("-----")]
        return load_der_public_key(base64.b64decode("".join(lines), validate=True))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("the secret must be the provider's public key, as its page shows it") from None


def extra_missing_error() -> ConfigurationError:
    """Return the error for a signature that needs a package of the extra `webhooks`."""
    return ConfigurationError(f"this webhook needs more packages: {install_command('webhooks')}")


def load_rsa_key(secret: str) -> RSAPublicKey:
    """Return the RSA public key of a secret, in the formats of `load_public_key`."""
    key = load_public_key(secret)
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415 - the key has needed it

    if not isinstance(key, RSAPublicKey):
        raise ConfigurationError("the secret must be an RSA public key")
    return key


def verify_rsa(key: PublicKeyTypes, signature: bytes, signed: bytes, *, sha1: bool) -> None:
    """Verify an RSA signature (PKCS #1 v1.5) of *signed*, over SHA-256 or over SHA-1."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415

    if not isinstance(key, RSAPublicKey):
        raise SignatureError("the certificate has no RSA key")
    try:
        key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA1() if sha1 else hashes.SHA256())  # noqa: S303
    except InvalidSignature:
        require_match(False)
