"""Sample webhooks: what a provider sends, signed as it signs, to try an installation without its account."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Protocol, cast
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.webhooks import registry
from mailglass_reconcile.webhooks.wire import Signed

TIMEOUT_SECONDS = 30
SHOWN_CHARACTERS = 200


class Sender(Protocol):
    """What the module of a provider has whose signature can be made with the receiver's own secret."""

    def samples(self, message_id: str, recipient: str | None, at: dt.datetime) -> Mapping[str, Any]:
        """Return a body for each of our types that the provider can send, as JSON that is not signed yet."""

    def sign(self, body: bytes, secret: str, at: float, url: str | None) -> Signed:
        """Return the request that carries a body, signed with *secret* at a time in seconds since 1970."""


def sender(provider: str) -> Sender | None:
    """Return a known provider's sender; None if it signs with a private key, or is read by an application's reader."""
    found = registry.module(provider)
    return cast("Sender", found) if hasattr(found, "sign") else None


def sample(body: Any, sender: Sender, secret: str, at: dt.datetime, url: str) -> Signed:
    """Return the request that carries one of a sender's samples.

    *url* is the address of the webhook as the receiver sees it, which Mandrill signs.
    """
    return sender.sign(json.dumps(body).encode(), secret, at.timestamp(), url)


def post(url: str, signed: Signed, option: str) -> tuple[int, str]:
    """Post a webhook, and return the status of the answer and the beginning of its text.

    The address may have a user name and a password; if it is no address of HTTP, a ValueError says so. No redirect is
    followed. *option* says where the address comes from, for an error.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of HTTP")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
    path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        connection.request("POST", path, signed.body, {**_credentials(parts), **signed.headers})
        answer = connection.getresponse()
        return answer.status, answer.read(SHOWN_CHARACTERS).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        raise MailglassReconcileError(f"nothing answers at the address of {option} ({type(error).__name__})") from None
    finally:
        connection.close()


def _credentials(parts: SplitResult) -> dict[str, str]:
    """Return the header for a user name and a password in an address."""
    if parts.username is None:
        return {}
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
