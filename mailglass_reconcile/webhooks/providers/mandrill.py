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
import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.providers import MessageIds
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.provider import NO_EVENT, Kind, Provider, Table, computed, epoch
from mailglass_reconcile.webhooks.wire import Authentication, Request, Signature, Signed, dug

_FIRST_TOLD = ("event", "type", "action", "ts", "url", "ip", "user_agent", "reject", "entry")


def _elements(request: Request) -> list[Any]:
    """Return the batch, which is a JSON text in the field `mandrill_events`."""
    batch = dict(request.form()).get("mandrill_events")
    if batch is None:
        raise InvalidWebhookError("the form has no field mandrill_events")
    return wire.as_list(wire.from_json(batch), "mandrill_events")


def _message_id(payload: Mapping[str, Any]) -> object:
    return payload.get("_id") or dug(payload, "msg", "_id")


def _digested(payload: Mapping[str, Any]) -> object:
    """Return what does not change when a webhook is repeated: `msg` may be empty at first."""
    return [_message_id(payload), {name: payload[name] for name in _FIRST_TOLD if name in payload}]


def _recipient(payload: Mapping[str, Any]) -> object:
    return dug(payload, "msg", "email") or dug(payload, "reject", "email")


def _reply(payload: Mapping[str, Any]) -> object:
    """Return what the recipient's server replied, or replied last."""
    attempts = dug(payload, "msg", "smtp_events")
    last = dug(attempts[-1], "diag") if isinstance(attempts, list) and attempts else None
    return wire.reply(dug(payload, "msg", "diag"), payload.get("diag"), last)


def _verify(request: Request, secret: str, now: float) -> None:
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


def _sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    """Return a request with a batch, as Mandrill sends it to the address *url*."""
    fields = {"mandrill_events": body.decode(errors="replace")}
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Mandrill-Signature": _signature(url or "", fields, secret),
    }
    return Signed(urlencode(fields).encode(), headers)


PROVIDER = Provider(
    name="mandrill",
    title="Mandrill",
    message_ids=MessageIds(("metadata/_id", "metadata/msg/_id", "metadata/message_id")),
    lacks_id=frozenset(),  # changes of its lists are `unknown`
    documentation="https://mailchimp.com/developer/transactional/docs/webhooks/",
    boxes="all message events",
    retries="not known",
    authentication=Authentication(Signature.IN_BODY, "HMAC-SHA1 over address and form", _verify, sign=_sign),
    elements=_elements,
    batch=list,
    table=Table(
        kind=("event", "type"),
        kinds={
            "send": Kind("sent"),
            "delivered": Kind("delivered"),
            "deferral": Kind("deferred"),
            "hard_bounce": Kind("bounced", "bounced", "hard"),
            "soft_bounce": Kind("bounced", "other", "soft"),
            "reject": Kind("rejected"),
            "open": Kind("opened"),
            "click": Kind("clicked"),
            "spam": Kind("complained"),
            "unsub": Kind("unsubscribed"),
            "inbound": NO_EVENT,
        },
        at=epoch("ts"),
        digested=_digested,
        message_id=computed(_message_id, "_id"),
        recipient=computed(_recipient, "msg/email"),
        reply=_reply,
        tags="msg/tags",
    ),
)
