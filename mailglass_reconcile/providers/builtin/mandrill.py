"""Mandrill (Mailchimp Transactional): batches in a form; an HMAC over the webhook's URL and the form.

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
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import NO_EVENT, EventKind, EventTable, Provider, epoch_field
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.provider_rules import MessageIds

_STABLE_FIELDS = ("event", "type", "action", "ts", "url", "ip", "user_agent", "reject", "entry")


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the batch, which is a JSON text in the field `mandrill_events`."""
    batch = dict(request.form).get("mandrill_events")
    if batch is None:
        raise InvalidWebhookError("the form has no field mandrill_events")
    return wire.require_list(wire.parse_json(batch), "mandrill_events")


def _message_id(payload: Mapping[str, Any]) -> object:
    return payload.get("_id") or get_path(payload, "msg", "_id")


def _digested(payload: Mapping[str, Any]) -> object:
    """Return the part of a payload that is the same when a webhook is repeated: `msg` may be empty at first."""
    return [_message_id(payload), {name: payload[name] for name in _STABLE_FIELDS if name in payload}]


def _recipient(payload: Mapping[str, Any]) -> object:
    return get_path(payload, "msg", "email") or get_path(payload, "reject", "email")


def _reply(payload: Mapping[str, Any]) -> object:
    """Return the reply of the recipient's server, or replied last."""
    attempts = get_path(payload, "msg", "smtp_events")
    last = get_path(attempts[-1], "diag") if isinstance(attempts, list) and attempts else None
    return wire.first_reply(get_path(payload, "msg", "diag"), payload.get("diag"), last)


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the signature; Mandrill signs the address as it was entered there, with its user name if it has one."""
    signature = request.header("X-Mandrill-Signature")
    if not request.url:
        raise ConfigurationError("the signature of mandrill needs the webhook's public URL: pass url")
    try:
        fields = dict(request.form)
    except InvalidWebhookError:
        raise SignatureError("the signed form cannot be read") from None
    signatures.require_match(signatures.constant_time_equal(signature, _signature(request.url, fields, secret)))


def _signature(url: str, fields: Mapping[str, str], secret: str) -> str:
    signed = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.digest(secret.encode(), signed.encode("utf-8", "replace"), "sha1")).decode()


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    """Return a request with a batch, as Mandrill sends it to the address *url*."""
    fields = {"mandrill_events": body.decode(errors="replace")}
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Mandrill-Signature": _signature(url or "", fields, secret),
    }
    return SignedRequest(urlencode(fields).encode(), headers)


PROVIDER = Provider(
    name="mandrill",
    title="Mandrill",
    message_ids=MessageIds(("metadata/_id", "metadata/msg/_id", "metadata/message_id")),
    lacks_id=frozenset(),  # changes of its lists are `unknown`
    authentication=Authentication(Signature.IN_BODY, _verify, signatures.validate_key, _sign, signs_url=True),
    elements=_elements,
    table=EventTable(
        kind=("event", "type"),
        kinds={
            "send": EventKind("sent"),
            "delivered": EventKind("delivered"),
            "deferral": EventKind("deferred"),
            "hard_bounce": EventKind("bounced", "bounced", "hard"),
            "soft_bounce": EventKind("bounced", "other", "soft"),
            "reject": EventKind("rejected"),
            "open": EventKind("opened"),
            "click": EventKind("clicked"),
            "spam": EventKind("complained"),
            "unsub": EventKind("unsubscribed"),
            "inbound": NO_EVENT,
        },
        at=epoch_field("ts"),
        digest_source=_digested,
        message_id=_message_id,
        recipient=_recipient,
        reply=_reply,
        smtp_message_id="msg/metadata/anymail_id",  # from the header X-MC-Metadata of a mail over SMTP
        tags="msg/tags",
    ),
)
