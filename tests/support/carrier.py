"""A custom provider with nested message ids, for `MAILGLASS_IMPORTS` of a process under test."""

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import NamedTuple

from mailglass_reconcile import WebhookEvent, key_rule
from mailglass_reconcile.webhooks import SignatureError, webhook_reader

BODY = b'{"id": "p-1", "kind": "arrived", "letter": {"ring": "r-1"}, "to": "ada@example.com"}'
SECRET = "coo"  # noqa: S105


class Posted(NamedTuple):
    """An incoming request."""

    body: bytes
    headers: dict[str, str]


def read(body: bytes, headers: Mapping[str, str]) -> list[WebhookEvent]:
    """Return the only event; its type may also be in a header."""
    document = json.loads(body)
    event = WebhookEvent(
        type=headers.get("x-carrier-type", "delivered"),
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id=document["id"],
        message_id=None,
        recipient=document.get("to"),
        metadata={"letter": document["letter"]},
    )
    return [event]


def verify(body: bytes, headers: Mapping[str, str], *, secret: str, url: str | None, now: dt.datetime) -> None:
    """Verify an HMAC; a missing header is a KeyError."""
    if not hmac.compare_digest(headers["x-carrier-signature"], hmac.new(secret.encode(), body, "sha256").hexdigest()):
        raise SignatureError("the signature does not match")


def make_signed_request(body: bytes = BODY, secret: str = SECRET, **headers: str) -> Posted:
    """Return a signed request of the provider."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return Posted(body, {"X-Carrier-Signature": signature, **headers})


@key_rule("carrier", reads=("metadata/letter/ring",))
def carrier(ring: str | None) -> list[str | None]:
    """Return the keys under which the send's id is recorded."""
    return [ring]


webhook_reader("carrier", read=read, verify=verify)
