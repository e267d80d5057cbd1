"""For `MAILGLASS_IMPORTS` of a process under test: a provider of its own, whose message ids are nested."""

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
    """A request as it arrives."""

    body: bytes
    headers: dict[str, str]


def read(body: bytes, headers: Mapping[str, str]) -> list[WebhookEvent]:
    """Return the only event; its type may also be in a header."""
    told = json.loads(body)
    event = WebhookEvent(
        type=headers.get("x-carrier-type", "delivered"),
        occurred_at=dt.datetime.now(dt.UTC),
        provider_event_id=told["id"],
        message_id=None,
        recipient=told.get("to"),
        metadata={"letter": told["letter"]},
    )
    return [event]


def verify(body: bytes, headers: Mapping[str, str], *, secret: str, url: str | None, now: dt.datetime) -> None:
    """Check an HMAC; a header that is missing is a KeyError."""
    if not hmac.compare_digest(headers["x-carrier-signature"], hmac.new(secret.encode(), body, "sha256").hexdigest()):
        raise SignatureError("the signature does not match")


def sent(body: bytes = BODY, secret: str = SECRET, **headers: str) -> Posted:
    """Return a request of the provider."""
    made = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return Posted(body, {"X-Carrier-Signature": made, **headers})


@key_rule("carrier", reads=("metadata/letter/ring",))
def carrier(ring: str | None) -> list[str | None]:
    """The id that the send is recorded with."""
    return [ring]


webhook_reader("carrier", read=read, verify=verify)
