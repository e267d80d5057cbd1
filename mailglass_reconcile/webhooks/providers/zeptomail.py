"""Zoho ZeptoMail: one event a request, as JSON or in a form; an HMAC over the JSON.

Followed: https://www.zoho.com/zeptomail/help/webhooks.html (events, the header `producer-signature`), and for its use
https://github.com/knadh/listmonk/issues/2754. It reports bounces, opens, clicks and complaints, and no deliveries. Not
documented: an id of an event; which of several recipients has opened; whether the JSON is the body or a field of a form
(both are read, and the signature is over the JSON alone in both).
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, unquote_plus

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import wire
from mailglass_reconcile.webhooks.provider import Kind, Provider, Table, computed, iso
from mailglass_reconcile.webhooks.wire import Authentication, Request, Signature, Signed, dug

_HEADER = "producer-signature"
_FIELD = re.compile(r"\s*(ts|s|s-algorithm)\s*=\s*(.*?)\s*", re.DOTALL)


def _document(request: Request) -> bytes:
    """Return the JSON: the body, or the value of the only field of a form."""
    _, equals, value = request.body.partition(b"=")
    if not equals or request.body.lstrip()[:1] == b"{":
        return request.body
    if value.count(b"%") > wire.MAX_ESCAPES:
        raise InvalidWebhookError("the body is not a form")
    return unquote_plus(value.decode("ascii", "replace")).encode("utf-8", "replace")


def _elements(request: Request) -> list[Any]:
    return [wire.as_object(wire.from_json(_document(request)), "the body")]


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    """Read one request: an event for each of its messages and details, such as of several recipients that bounced."""
    for payload in flatten(wire.as_object(element, "the body")):
        made = PROVIDER.table.read(payload)
        if made is not None:
            yield made


def flatten(body: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Return each detail with its message and the name of the event."""
    name = body.get("event_name")
    event = name[0] if isinstance(name, list) and name else name
    for message in wire.as_list(body.get("event_message"), "event_message"):
        told = wire.as_object(message, "the message")
        details = [
            detail
            for data in wire.as_list(told.get("event_data", []), "event_data")
            for detail in (dug(data, "details") or [])
        ]
        for detail in details or [{}]:
            yield {"event": event, "message": told, "detail": detail}


def _recipient(payload: Mapping[str, Any]) -> object:
    """Return who bounced, or the only recipient of the message."""
    if bounced := dug(payload, "detail", "bounced_recipient"):
        return bounced
    info = dug(payload, "message", "email_info")
    named = [entry for header in ("to", "cc", "bcc") for entry in (dug(info, header) or [])]
    return dug(named[0], "email_address", "address") if len(named) == 1 else None


def _reply(payload: Mapping[str, Any]) -> object:
    return wire.reply(dug(payload, "detail", "diagnostic_message"), dug(payload, "detail", "reason"))


def _digested(payload: Mapping[str, Any]) -> object:
    """Return what does not change when a webhook is repeated."""
    return [payload["event"], dug(payload, "message", "request_id"), payload["detail"], _recipient(payload)]


def _verify(request: Request, secret: str, now: float) -> None:
    """Check the header `producer-signature`: time in milliseconds and an HMAC-SHA256 in base64, URL-encoded."""
    parts = (_FIELD.fullmatch(part) for part in request.header(_HEADER).split(";"))
    fields = {part[1]: part[2] for part in parts if part}
    at, algorithm = fields.get("ts", ""), fields.get("s-algorithm")
    if "s" not in fields or algorithm != "HmacSHA256" or not (at.isascii() and at.isdecimal()):
        raise SignatureError("the header producer-signature cannot be read")
    wire.fresh(at[:-3], now)
    try:
        document = _document(request)
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    wire.require(wire.equal(wire.decoded(unquote(fields["s"])), _hmac(document, secret)))


def _hmac(document: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), document, "sha256")


def _sign(body: bytes, secret: str, at: float, url: str | None) -> Signed:
    signature = base64.b64encode(_hmac(body, secret)).decode().replace("+", "%2B").replace("=", "%3D")
    return wire.as_json(body, producer_signature=f"ts={int(at) * 1000};s={signature};s-algorithm=HmacSHA256")


def _wrap(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that carries one detail."""
    data = {"object": payload["event"], "details": [payload["detail"]]}
    return {
        "event_name": [payload["event"]],
        "event_message": [{**payload["message"], "event_data": [data]}],
        "mailagent_key": "27a7f5a0d1a33a51",
        "webhook_request_id": wire.digest(payload)[:32],
    }


def _to(recipient: str | None) -> list[Any]:
    return [{"email_address": {"address": recipient}}] if recipient else []


PROVIDER = Provider(
    name="zeptomail",
    title="Zoho ZeptoMail",
    spellings=("ZeptoMail", "zoho_zeptomail", "zeptomail"),
    documentation="https://www.zoho.com/zeptomail/help/webhooks.html",
    recipient_known="of bounces, and else if there is one only",
    boxes="all events",
    retries="not known",
    authentication=Authentication(Signature.OVER_BODY, "HMAC-SHA256", _verify, sign=_sign),
    elements=_elements,
    events=_events,
    wrap=_wrap,
    table=Table(
        kind="event",
        kinds={
            "hardbounce": Kind("bounced", "bounced", "hard", {"detail": {"diagnostic_message": "550 5.1.1 no"}}),
            "softbounce": Kind("bounced", "other", "soft", {"detail": {"diagnostic_message": "452 4.2.2 full"}}),
            "email_open": Kind("opened"),
            "email_link_click": Kind("clicked"),
            "feedback_loop": Kind("complained"),
        },
        at=iso("detail/time", "message/email_info/processed_time"),
        digested=_digested,
        message_id="message/request_id",
        recipient=computed(_recipient, "message/email_info/to", _to),
        reply=_reply,
        tags="message/email_info/tag",
    ),
)
