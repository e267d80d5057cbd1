"""Brevo: one event a request; HTTP basic authentication, because Brevo signs nothing.

Followed: https://developers.brevo.com/docs/transactional-webhooks, https://developers.brevo.com/docs/marketing-webhooks
(`list_addition` and `unsubscribe`) and https://developers.brevo.com/docs/username-and-password-authentication. Not
documented: an id of the event. The documentation's examples have events without `ts_epoch`, and some that have it in
seconds. Brevo discards an event after any 5xx, and after any 4xx but 429.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules.provider_rules import MessageIds

_PREFIX = re.compile(r"\s*(?:[245]\d\d\s+)?RecipientError:\s*")
"""Stands before some replies (https://github.com/anymail/django-anymail/blob/main/tests/test_brevo_webhooks.py)."""
_FIRST_YEAR = 2012
"""Brevo's first; `ts_epoch` in seconds, read as milliseconds, is a time of January 1970."""


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's event, or the batch; inbound mail gives none."""
    body = request.json
    if isinstance(body, list):
        return body
    return [] if "items" in wire.require_object(body, "the body") else [body]


def _at(payload: Mapping[str, Any]) -> dt.datetime | None:
    """Return the time: `ts_epoch` if it is in milliseconds, else `ts_event`; `date` is in another zone."""
    ts_epoch = payload.get("ts_epoch")
    at = wire.parse_epoch(ts_epoch, per_second=1_000)
    return (
        at
        if at is not None and at.year >= _FIRST_YEAR
        else wire.parse_epoch(payload.get("ts_event")) or wire.parse_epoch(ts_epoch)
    )


def _reply(payload: Mapping[str, Any]) -> object:
    reason = payload.get("reason")
    return _PREFIX.sub("", reason, count=1) if isinstance(reason, str) else None


PROVIDER = Provider(
    name="brevo",
    title="Brevo",
    spellings=("sendinblue", "SendinBlue"),
    message_ids=MessageIds(("metadata/message-id", "metadata/messageId", "metadata/message_id")),
    lacks_id=frozenset({"subscribed"}),  # additions to a list
    authentication=signatures.BASIC,
    retry_status=429,
    elements=_elements,
    table=EventTable(
        kind="event",
        kinds={
            "request": EventKind("queued"),
            "delivered": EventKind("delivered"),
            "deferred": EventKind("deferred"),
            "hard_bounce": EventKind("bounced", "bounced", "hard"),
            "soft_bounce": EventKind("bounced", "other", "soft"),
            "blocked": EventKind("rejected", "blocked"),
            "invalid_email": EventKind("rejected", "invalid"),
            "error": EventKind("failed"),
            "opened": EventKind("opened"),
            "unique_opened": EventKind("opened"),
            "proxy_open": EventKind("opened"),
            "unique_proxy_open": EventKind("opened"),
            "click": EventKind("clicked"),
            "spam": EventKind("complained"),
            "complaint": EventKind("complained"),
            "unsubscribed": EventKind("unsubscribed"),
            "unsubscribe": EventKind("unsubscribed"),
            "list_addition": EventKind("subscribed"),
        },
        at=_at,
        digest_source=lambda payload: {
            name: value for name, value in payload.items() if name != "id"
        },  # the webhook's id
        message_id="message-id",
        recipient="email",
        reply=_reply,
        tags=lambda payload: payload["tags"] if "tags" in payload else payload.get("tag"),
    ),
)
