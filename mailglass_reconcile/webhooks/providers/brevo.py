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

from mailglass_reconcile.rules.providers import MessageIds
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.provider import Field, Kind, Provider, Table
from mailglass_reconcile.webhooks.wire import Request

_PREFIX = re.compile(r"\s*(?:[245]\d\d\s+)?RecipientError:\s*")
"""Stands before some replies (https://github.com/anymail/django-anymail/blob/main/tests/test_brevo_webhooks.py)."""
_FIRST_YEAR = 2012
"""Brevo's first; `ts_epoch` in seconds, read as milliseconds, is a time of January 1970."""


def _elements(request: Request) -> list[Any]:
    """Return the request's event, or the batch; inbound mail gives none."""
    body = request.json()
    if isinstance(body, list):
        return body
    return [] if "items" in wire.as_object(body, "the body") else [body]


def _at(payload: Mapping[str, Any]) -> dt.datetime | None:
    """Return the time: `ts_epoch`, if it is in milliseconds, or else `ts_event`; `date` is in another zone."""
    told = payload.get("ts_epoch")
    at = wire.epoch(told, per_second=1_000)
    return at if at is not None and at.year >= _FIRST_YEAR else wire.epoch(payload.get("ts_event")) or wire.epoch(told)


def _reply(payload: Mapping[str, Any]) -> object:
    reason = payload.get("reason")
    return _PREFIX.sub("", reason, count=1) if isinstance(reason, str) else None


PROVIDER = Provider(
    name="brevo",
    title="Brevo",
    spellings=("sendinblue", "SendinBlue"),
    message_ids=MessageIds(("metadata/message-id", "metadata/messageId", "metadata/message_id")),
    lacks_id=frozenset({"subscribed"}),  # additions to a list
    documentation="https://developers.brevo.com/docs/transactional-webhooks",
    boxes="all but `uniqueOpened` and `uniqueProxyOpen`, which report the first open again",
    retries="4, after 10 minutes, 1 hour, 2 hours and 8 hours",
    authentication=wire.BASIC,
    busy=429,
    elements=_elements,
    table=Table(
        kind="event",
        kinds={
            "request": Kind("queued"),
            "delivered": Kind("delivered"),
            "deferred": Kind("deferred"),
            "hard_bounce": Kind("bounced", "bounced", "hard"),
            "soft_bounce": Kind("bounced", "other", "soft"),
            "blocked": Kind("rejected", "blocked"),
            "invalid_email": Kind("rejected", "invalid"),
            "error": Kind("failed"),
            "opened": Kind("opened"),
            "unique_opened": Kind("opened"),
            "proxy_open": Kind("opened"),
            "unique_proxy_open": Kind("opened"),
            "click": Kind("clicked"),
            "spam": Kind("complained"),
            "complaint": Kind("complained"),
            "unsubscribed": Kind("unsubscribed"),
            "unsubscribe": Kind("unsubscribed"),
            "list_addition": Kind("subscribed"),
        },
        at=Field(_at, ("ts_epoch",), lambda at: int(at.timestamp() * 1_000)),
        digested=lambda payload: {name: value for name, value in payload.items() if name != "id"},  # the webhook's id
        message_id="message-id",
        recipient="email",
        reply=_reply,
        tags=lambda payload: payload["tags"] if "tags" in payload else payload.get("tag"),
    ),
)
