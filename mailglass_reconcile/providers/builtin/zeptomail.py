"""Zoho ZeptoMail: one event a request, as JSON or in a form; an HMAC over the JSON.

Followed: https://www.zoho.com/zeptomail/help/webhooks.html (events, the header `producer-signature`), and for its use
https://github.com/knadh/listmonk/issues/2754. Zoho calls it Zoho CPaaS since 2026; the form of today has no key to
sign with, but a header of the user's choice. Not documented: an id of an event; which of several recipients has
opened; whether the JSON is the body or a field of a form (both are read, and the signature is over the JSON alone in
both); the names of complaints and deliveries (those that other projects have met are read), and whether `details` is
a list or an object.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.providers import signatures, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, iso_field
from mailglass_reconcile.providers.signatures import Authentication, Signature, SignedRequest
from mailglass_reconcile.providers.wire import WebhookRequest, get_path
from mailglass_reconcile.rules.events import WebhookEvent

_HEADER = "producer-signature"


def _document(request: WebhookRequest) -> bytes:
    """Return the JSON: the body, or the value of the only field of a form."""
    _, equals, value = request.body.partition(b"=")
    if not equals or request.body.lstrip()[:1] == b"{":
        return request.body
    return wire.decode_form_value(value)


def _elements(request: WebhookRequest) -> list[Any]:
    return [wire.require_object(wire.parse_json(_document(request)), "the body")]


def _events(element: Any, request_id: str | None) -> Iterable[WebhookEvent]:
    """Yield an event for each detail of a request's messages, such as for several recipients that bounced."""
    for payload in flatten(wire.require_object(element, "the body")):
        event = PROVIDER.table.read(payload)
        if event is not None:
            yield event


def flatten(body: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Return each detail with its message and the name of the event."""
    name = body.get("event_name")
    event = name[0] if isinstance(name, list) and name else name
    # the form's test call has neither name nor message
    for message in wire.require_list(body.get("event_message", [] if name is None else None), "event_message"):
        message_object = wire.require_object(message, "the message")
        details = [
            detail
            for data in wire.require_list(message_object.get("event_data", []), "event_data")
            for detail in _list_details(data)
        ]
        for detail in details or [{}]:
            yield {"event": event, "message": message_object, "detail": detail}


def _list_details(data: object) -> list[Any]:
    details = get_path(data, "details") or []
    return [details] if isinstance(details, dict) else wire.require_list(details, "details")


def _recipient(payload: Mapping[str, Any]) -> object:
    """Return the recipient that bounced or complained, or the only recipient of the message."""
    if bounced := get_path(payload, "detail", "bounced_recipient"):
        return bounced
    complained = get_path(payload, "detail", "to")
    if isinstance(complained, list) and len(complained) == 1:
        return complained[0]
    info = get_path(payload, "message", "email_info")
    entries = [entry for header in ("to", "cc", "bcc") for entry in (get_path(info, header) or [])]
    return get_path(entries[0], "email_address", "address") if len(entries) == 1 else None


def _reply(payload: Mapping[str, Any]) -> object:
    return wire.first_reply(get_path(payload, "detail", "diagnostic_message"), get_path(payload, "detail", "reason"))


def _digested(payload: Mapping[str, Any]) -> object:
    """Return the part of a payload that is the same when a webhook is repeated."""
    return [payload["event"], get_path(payload, "message", "request_id"), payload["detail"], _recipient(payload)]


def _verify(request: WebhookRequest, secret: str, now: float) -> None:
    """Verify the header `Authorization` if there is one, which is the whole secret, or else `producer-signature`.

    That has an HMAC-SHA256 in base64, URL-encoded, and a time, which is not signed.
    """
    if authorization := request.headers.get("authorization"):
        if len(secret) < signatures.MIN_HEADER_SECRET or not signatures.constant_time_equal(authorization, secret):
            raise SignatureError("the header Authorization has another value than the secret")
        return
    parts = (part.partition("=") for part in request.header(_HEADER).split(";"))
    fields = {name.strip(): value.strip() for name, _, value in parts}
    if "s" not in fields or fields.get("s-algorithm") != "HmacSHA256":
        raise SignatureError("the header producer-signature cannot be read")
    try:
        encoded_signature = wire.percent_decode(fields["s"].encode("utf-8", "replace"))
        document = _document(request)
    except InvalidWebhookError as error:
        raise SignatureError(str(error)) from None
    signature = signatures.b64decode_or_reject(encoded_signature)
    signatures.require_match(signatures.constant_time_equal(signature, _hmac(document, secret)))


def _hmac(document: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), document, "sha256")


def _sign(body: bytes, secret: str, at: float, url: str | None) -> SignedRequest:
    signature = base64.b64encode(_hmac(body, secret)).decode().replace("+", "%2B").replace("=", "%3D")
    return signatures.json_request(body, producer_signature=f"ts={int(at) * 1000};s={signature};s-algorithm=HmacSHA256")


PROVIDER = Provider(
    name="zeptomail",
    title="Zoho ZeptoMail",
    spellings=("ZeptoMail", "zoho_zeptomail", "zeptomail", "Zoho CPaaS", "zoho_cpaas"),
    authentication=Authentication(Signature.OVER_BODY, _verify, signatures.validate_key, _sign),
    immediate_bytes=1024 * 1024,  # the decoding of a longer form takes too long for an event loop
    elements=_elements,
    events=_events,
    table=EventTable(
        kind="event",
        kinds={
            "hardbounce": EventKind("bounced", "bounced", "hard"),
            "softbounce": EventKind("bounced", "other", "soft"),
            "email_open": EventKind("opened"),
            "email_link_click": EventKind("clicked"),
            "fbl_compliant": EventKind("complained"),  # sic
            "fbl_complaint": EventKind("complained"),
            "fbl": EventKind("complained"),
            "feedback_loop": EventKind("complained"),
            "delivered": EventKind("delivered"),
            "email_delivery": EventKind("delivered"),
        },
        at=iso_field("detail/time", "message/email_info/processed_time"),
        digest_source=_digested,
        message_id="message/request_id",
        recipient=_recipient,
        reply=_reply,
        smtp_message_id="message/email_info/client_reference",  # from the header X-TM-CLIENT-REF of a mail over SMTP
        tags="message/email_info/tag",
    ),
)
