"""Sample webhooks: what a provider sends, signed as it signs, to try an installation without its account."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Protocol, cast

from mailglass_reconcile.webhooks import registry
from mailglass_reconcile.webhooks.wire import Signed


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

    Args:
        body: The sample.
        sender: Its provider.
        secret: What the receiver verifies it with.
        at: When it is sent.
        url: The address of the webhook as the receiver sees it, which Mandrill signs.
    """
    return sender.sign(json.dumps(body).encode(), secret, at.timestamp(), url)
