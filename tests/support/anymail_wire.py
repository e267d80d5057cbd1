"""How a provider's webhook reaches Anymail's views: what all of them share."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

Payload = dict[str, Any]

BEGIN = 1_772_366_400
"""2026-03-01 12:00 UTC; event number *n* happened *n* seconds later."""
AUTH = "user:password"
KEY = "signing-key"
PRIVATE = "198.51.100.7"
"""The IP address, user agent or link in every payload that has one."""
URL = f"https://shop.example/?who={PRIVATE}"


@cache
def postal_key() -> rsa.RSAPrivateKey:
    """The key that Postal signs with."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def settings() -> dict[str, str]:
    """Return Anymail's settings for the webhooks."""
    public = postal_key().public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "WEBHOOK_SECRET": AUTH,
        "MAILGUN_WEBHOOK_SIGNING_KEY": KEY,
        "MAILERSEND_SIGNING_SECRET": KEY,
        "MANDRILL_WEBHOOK_KEY": KEY,
        "UNISENDER_GO_API_KEY": KEY,
        "POSTAL_WEBHOOK_KEY": b64encode(der).decode(),
    }


@dataclass(frozen=True)
class Provider:
    """A provider's webhook; `kinds` are its own names for events, with the type that each is recorded as.

    `differs` has, by kind, the fields of Anymail's `WebhookEvent` that our own reader reads otherwise on purpose.
    """

    esp_name: str
    path: str
    kinds: Mapping[str, str]
    event: Callable[..., Payload]
    request: Callable[[Sequence[Payload]], Payload]
    batches: bool = False
    differs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def requests(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return what is posted for some events, as arguments of Django's test client: one request, or one for each."""
        each = [payloads] if self.batches else [[payload] for payload in payloads]
        return [{"path": self.path, **self.request(some)} for some in each]

    def kind_of(self, type_: str) -> str:
        """Return the first kind that is recorded as a type."""
        return next(kind for kind, recorded in self.kinds.items() if recorded == type_)


def iso(n: float, zone: str = "Z") -> str:
    """Return when event number *n* happened."""
    return datetime.fromtimestamp(BEGIN + n, UTC).strftime("%Y-%m-%dT%H:%M:%S") + zone


def as_json(payload: Any, **headers: str) -> Payload:
    """Return a request with a JSON body."""
    return {"data": json.dumps(payload), "content_type": "application/json", "headers": headers}


def only(payloads: Sequence[Payload]) -> Payload:
    """Return a request with the only event as its body."""
    return as_json(payloads[0])


def sign(text: str) -> str:
    """Return the HMAC of a text with the signing key."""
    return hmac.new(KEY.encode(), text.encode(), "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return an id for what a value says, the same each time."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]
