"""Mandrill (Mailchimp Transactional): batches in a form; an HMAC over the webhook's address and the form.

Followed: https://mailchimp.com/developer/transactional/docs/webhooks/ and
https://mailchimp.com/developer/transactional/guides/track-respond-activity-webhooks/#authenticating-webhook-requests.
Not documented: an id of the event; an id that a sender over SMTP could know; why a message was rejected; that events
may have their `_id` in `msg` only
(https://github.com/symfony/symfony/blob/7.2/src/Symfony/Component/Mailer/Bridge/Mailchimp/Tests/Webhook/Fixtures); that
a `delivered` may have its reply beside `msg` (https://github.com/tutorcruncher/morpheus/pull/501).
"""

from __future__ import annotations

import base64
import datetime as dt
import hmac
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.wire import Request, Signed, dug

SIGNATURE = wire.Signature.IN_BODY

_TYPES = {
    "click": "clicked",
    "deferral": "deferred",
    "delivered": "delivered",
    "hard_bounce": "bounced",
    "open": "opened",
    "reject": "rejected",
    "send": "sent",
    "soft_bounce": "bounced",
    "spam": "complained",
    "unsub": "unsubscribed",
}
_BOUNCES: dict[str, tuple[str, Bounce]] = {"hard_bounce": ("bounced", "hard"), "soft_bounce": ("other", "soft")}
_FIRST_TOLD = ("event", "type", "action", "ts", "url", "ip", "user_agent", "reject", "entry")


def elements(request: Request) -> list[Any]:
    """Return the batch, which is a JSON text in the field `mandrill_events`."""
    batch = dict(request.form()).get("mandrill_events")
    if batch is None:
        raise InvalidWebhookError("the form has no field mandrill_events")
    return wire.as_list(wire.from_json(batch), "mandrill_events")


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; inbound mail gives none. Changes of the rejection list are `unknown`."""
    payload = wire.as_object(element, "the event")
    kind = str(payload.get("event", payload.get("type")))
    if kind == "inbound":
        return
    yield wire.event(
        payload,
        type=_TYPES.get(kind, "unknown"),
        at=wire.epoch(payload.get("ts")),
        id=event_id(payload),
        message_id=_message_id(payload),
        recipient=dug(payload, "msg", "email") or dug(payload, "reject", "email"),
        reason=_BOUNCES.get(kind, (None, None))[0],
        bounce=bounce(payload),
        smtp=smtp(payload),
        tags=dug(payload, "msg", "tags"),
    )


def _message_id(payload: Mapping[str, Any]) -> object:
    return payload.get("_id") or dug(payload, "msg", "_id")


def event_id(payload: Mapping[str, Any]) -> str:
    """Return a digest of what does not change when a webhook is repeated: `msg` may be empty at first."""
    return wire.digest([_message_id(payload), {name: payload[name] for name in _FIRST_TOLD if name in payload}])


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by the event's name."""
    return _BOUNCES.get(str(payload.get("event")), (None, None))[1]


def smtp(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied, or replied last."""
    attempts = dug(payload, "msg", "smtp_events")
    last = dug(attempts[-1], "diag") if isinstance(attempts, list) and attempts else None
    return wire.reply(dug(payload, "msg", "diag"), payload.get("diag"), last)


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature; Mandrill signs the address as it was entered there, with its user name if it has one."""
    given = request.header("X-Mandrill-Signature")
    if not request.url:
        raise ConfigurationError("the signature of mandrill needs the webhook's public address: pass url")
    try:
        fields = dict(request.form())
    except InvalidWebhookError:
        raise SignatureError("the signed form cannot be read") from None
    wire.require(wire.equal(given, _signature(request.url, fields, secret)))


def _signature(url: str, fields: Mapping[str, str], secret: str) -> str:
    signed = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.digest(secret.encode(), signed.encode("utf-8", "replace"), "sha1")).decode()


def sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request with a batch, as Mandrill sends it to the address *url*."""
    fields = {"mandrill_events": body.decode(errors="replace")}
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Mandrill-Signature": _signature(url or "", fields, secret),
    }
    return Signed(urlencode(fields).encode(), headers)


def samples(message_id: str, recipient: str | None, at: dt.datetime) -> dict[str, Any]:
    """Return for each type a batch as Mandrill writes it."""
    kinds = {
        "bounced": "hard_bounce",
        "clicked": "click",
        "complained": "spam",
        "deferred": "deferral",
        "opened": "open",
        "rejected": "reject",
        "sent": "send",
        "unsubscribed": "unsub",
    }
    common = {"_id": message_id, "ts": int(at.timestamp()), "msg": {"_id": message_id, "email": recipient}}
    return {type_: [{"event": kind, **common}] for type_, kind in kinds.items()}
