"""Providers that post one event a request: their payloads, with their own field names."""

import json
from base64 import b64encode
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from anymail_wire import BEGIN, PRIVATE, URL, Payload, Provider, as_json, digest, iso, only, postal_key, sign


def postmark(kind: str, message_id: str, to: str, n: int) -> Payload:
    """One of `RecordType`, or `Bounce/Type`."""
    record, _, type_ = kind.partition("/")
    common = {"RecordType": record, "MessageID": message_id, "ServerID": 23, "Tag": "welcome", "Metadata": {"who": to}}
    bounce = {
        "ID": int(digest([kind, message_id, to, n])[:10], 16),
        "Email": to,
        "BouncedAt": iso(n),
        "Details": f"smtp;550 <{to}>",
        "Subject": "Hi",
    }
    seen = {"Recipient": to, "ReceivedAt": iso(n), "UserAgent": PRIVATE, "Geo": {"IP": PRIVATE}}
    more = {
        "Bounce": {**bounce, "Type": type_, "TypeCode": 1, "Inactive": True},
        "SpamComplaint": {**bounce, "Type": "SpamComplaint", "TypeCode": 512},
        "Delivery": {"Recipient": to, "DeliveredAt": iso(n), "Details": f"250 OK {to}"},
        "Open": {**seen, "FirstOpen": n == 0},
        "Click": {**seen, "OriginalLink": URL, "ClickLocation": "HTML"},
        "SubscriptionChange": {
            "Recipient": to,
            "ChangedAt": iso(n),
            "Origin": "Recipient",
            "SuppressSending": True,
            "SuppressionReason": "ManualSuppression",
        },
    }
    return {**common, **more[record]}


POSTMARK = Provider(
    "Postmark",
    "/postmark/tracking/",
    {
        "Delivery": "delivered",
        "Bounce/HardBounce": "bounced",
        "Bounce/SoftBounce": "bounced",
        "Bounce/Transient": "deferred",
        "Bounce/AutoResponder": "autoresponded",
        "Bounce/BadEmailAddress": "rejected",
        "Bounce/Unsubscribe": "unsubscribed",
        "Bounce/Subscribe": "subscribed",
        "Bounce/TemplateRenderingFailed": "failed",
        "Bounce/InboundError": "unknown",
        "Open": "opened",
        "Click": "clicked",
        "SpamComplaint": "complained",
        "SubscriptionChange": "unsubscribed",
    },
    postmark,
    only,
)


def ses(kind: str, message_id: str, to: str | Sequence[str], n: int) -> Payload:
    """A notification about one or several recipients."""
    named = [to] if isinstance(to, str) else list(to)
    bare = [one.rpartition("<")[2].rstrip(">") for one in named]
    mail = {
        "messageId": message_id,
        "destination": named,
        "timestamp": iso(n),
        "headers": [{"name": "X-Tag", "value": "welcome"}, {"name": "X-Metadata", "value": json.dumps({"who": bare})}],
    }
    seen = {"timestamp": iso(n), "ipAddress": PRIVATE, "userAgent": PRIVATE}
    more: dict[str, Payload] = {
        "Send": {"send": {}},
        "Delivery": {"delivery": {"recipients": bare, "timestamp": iso(n), "smtpResponse": f"250 ok {bare[0]}"}},
        "Bounce": {
            "bounce": {
                "bounceType": "Permanent",
                "bounceSubType": "General",
                "bouncedRecipients": [{"emailAddress": one, "diagnosticCode": f"550 <{one}>"} for one in named],
            }
        },
        "Complaint": {
            "complaint": {"complainedRecipients": [{"emailAddress": one} for one in named], "userAgent": PRIVATE}
        },
        "Reject": {"reject": {"reason": "Bad content"}},
        "Open": {"open": seen},
        "Click": {"click": {**seen, "link": URL}},
        "Rendering Failure": {"failure": {"errorMessage": f"no attribute for {bare[0]}", "templateName": "t"}},
        "DeliveryDelay": {
            "deliveryDelay": {"delayedRecipients": [{"emailAddress": one} for one in bare], "timestamp": iso(n)}
        },
    }
    return {"eventType": kind, "mail": mail, "at": iso(n), **more[kind]}


def sns(payloads: Sequence[Payload]) -> Payload:
    """A notification of SNS, whose id is the same over all retries and for all recipients."""
    told = {name: value for name, value in payloads[0].items() if name != "at"}
    id_ = digest(payloads[0])
    body = {"Type": "Notification", "MessageId": id_, "Message": json.dumps(told), "Timestamp": payloads[0]["at"]}
    headers = {"x-amz-sns-message-id": id_, "x-amz-sns-message-type": "Notification"}
    return {"data": json.dumps(body), "content_type": "text/plain; charset=UTF-8", "headers": headers}


SES = Provider(
    "Amazon SES",
    "/amazon_ses/tracking/",
    {
        "Send": "sent",
        "Delivery": "delivered",
        "Bounce": "bounced",
        "Complaint": "complained",
        "Reject": "rejected",
        "Open": "opened",
        "Click": "clicked",
        "Rendering Failure": "failed",
        "DeliveryDelay": "deferred",
    },
    ses,
    sns,
)


def mailgun(kind: str, message_id: str, to: str, n: int) -> Payload:
    """The `event-data` of one event: `event`, or `failed/severity`."""
    event, _, severity = kind.partition("/")
    common = {
        "event": event,
        "id": digest([kind, message_id, to, n]),
        "timestamp": BEGIN + n + 0.25,
        "recipient": to,
        "message": {"headers": {"message-id": message_id.strip("<>"), "to": to, "from": "shop@example.com"}},
        "tags": ["welcome"],
        "user-variables": {"who": to},
    }
    seen = {"ip": PRIVATE, "client-info": {"user-agent": PRIVATE}, "geolocation": {"city": PRIVATE}}
    more: dict[str, Payload] = {
        "failed": {"severity": severity, "reason": "bounce", "delivery-status": {"code": 550, "message": f"no {to}"}},
        "rejected": {"reject": {"reason": f"Sandbox: {to}"}},
        "delivered": {"delivery-status": {"code": 250, "message": "OK"}},
        "clicked": {**seen, "url": URL},
    }
    return {**common, **more.get(event, seen)}


def mailgun_request(payloads: Sequence[Payload], attempt: int = 0) -> Payload:
    """A signed request; the token of its signature belongs to the request, not to the event."""
    at, token = str(BEGIN), f"token-{attempt}"
    signature = {"token": token, "timestamp": at, "signature": sign(at + token)}
    return as_json({"signature": signature, "event-data": payloads[0]})


MAILGUN = Provider(
    "Mailgun",
    "/mailgun/tracking/",
    {
        "delivered": "delivered",
        "failed/permanent": "bounced",
        "failed/temporary": "deferred",
        "rejected": "rejected",
        "opened": "opened",
        "clicked": "clicked",
        "complained": "complained",
        "unsubscribed": "unsubscribed",
    },
    mailgun,
    mailgun_request,
)


def brevo(kind: str, message_id: str, to: str, n: int) -> Payload:
    """One event; `ts_epoch` is in milliseconds."""
    return {
        "event": kind,
        "email": to,
        "id": 42,
        "message-id": message_id,
        "ts_epoch": (BEGIN + n) * 1000,
        "subject": "Hi",
        "X-Mailin-custom": json.dumps({"who": to}),
        "tags": ["welcome"],
        "sending_ip": PRIVATE,
        "reason": f"550 <{to}>",
        "link": URL,
    }


BREVO = Provider(
    "Brevo",
    "/brevo/tracking/",
    {
        "request": "queued",
        "delivered": "delivered",
        "hard_bounce": "bounced",
        "soft_bounce": "bounced",
        "invalid_email": "rejected",
        "blocked": "rejected",
        "deferred": "deferred",
        "error": "failed",
        "unique_opened": "opened",
        "opened": "opened",
        "proxy_open": "opened",
        "unique_proxy_open": "opened",
        "click": "clicked",
        "spam": "complained",
        "complaint": "complained",
        "unsubscribe": "unsubscribed",
        "list_addition": "subscribed",
    },
    brevo,
    only,
    differs={"soft_bounce": {"reject_reason": "bounced"}, "invalid_email": {"type": "bounced"}},
)


def resend(kind: str, message_id: str, to: str | Sequence[str], n: int) -> Payload:
    """One event; `svix-id` is made of what it holds."""
    data: Payload = {
        "email_id": message_id,
        "created_at": iso(0),
        "from": "Shop <shop@example.com>",
        "to": [to] if isinstance(to, str) else list(to),
        "subject": "Hi",
        "headers": [
            {"name": "X-Tags", "value": '["welcome"]'},
            {"name": "X-Metadata", "value": json.dumps({"who": to})},
        ],
    }
    if kind == "email.bounced":
        data["bounce"] = {"message": f"The recipient's email provider sent a hard bounce message for {to}"}
    if kind == "email.clicked":
        data["click"] = {"ipAddress": PRIVATE, "link": URL, "userAgent": PRIVATE}
    return {"type": kind, "created_at": iso(n), "data": data}


def svix(payloads: Sequence[Payload]) -> Payload:
    """A request as Svix makes it; its id is the event's over all retries."""
    return as_json(payloads[0], **{"svix-id": f"msg_{digest(payloads[0])}"})


RESEND = Provider(
    "Resend",
    "/resend/tracking/",
    {
        "email.sent": "sent",
        "email.delivered": "delivered",
        "email.delivery_delayed": "deferred",
        "email.bounced": "bounced",
        "email.complained": "complained",
        "email.opened": "opened",
        "email.clicked": "clicked",
    },
    resend,
    svix,
)


def mailersend(kind: str, message_id: str, to: str, n: int) -> Payload:
    """One activity; the request around it is dated at each attempt."""
    return {
        "object": "activity",
        "id": digest([kind, message_id, to, n]),
        "type": kind,
        "created_at": iso(n),
        "email": {
            "id": "63fd1c1de225707fa905f0a8",
            "status": "sent",
            "tags": ["welcome"],
            "message": {"id": message_id},
            "recipient": {"email": to},
        },
        "morph": {"object": _MORPHS.get(kind, kind), "reason": f"no {to}", "url": URL, "ip": PRIVATE},
    }


_MORPHS = {
    "soft_bounced": "recipient_bounce",
    "hard_bounced": "recipient_bounce",
    "unsubscribed": "recipient_unsubscribe",
}


def mailersend_request(payloads: Sequence[Payload], attempt: int = 0) -> Payload:
    """A signed request."""
    data = payloads[0]
    request = as_json({"type": f"activity.{data['type']}", "created_at": iso(attempt), "data": data})
    return {**request, "headers": {"Signature": sign(request["data"])}}


MAILERSEND = Provider(
    "MailerSend",
    "/mailersend/tracking/",
    {
        "sent": "sent",
        "delivered": "delivered",
        "soft_bounced": "bounced",
        "hard_bounced": "bounced",
        "opened": "opened",
        "clicked": "clicked",
        "unsubscribed": "unsubscribed",
        "spam_complaint": "complained",
    },
    mailersend,
    mailersend_request,
    differs={"soft_bounced": {"reject_reason": "bounced"}},
)


def postal(kind: str, message_id: int, to: str, n: int) -> Payload:
    """One event: a delivery's status, a bounce, a click, or an open, which Anymail does not know."""
    message = {"id": message_id, "direction": "outgoing", "to": to, "from": "shop@example.com", "tag": "welcome"}
    of_kind: dict[str, Payload] = {
        "Bounce": {"original_message": message, "bounce": {"id": 7, "direction": "incoming", "to": "b@example.com"}},
        "LinkClicked": {"message": message, "url": URL, "ip_address": PRIVATE, "user_agent": PRIVATE},
        "Loaded": {"message": message, "ip_address": PRIVATE, "user_agent": PRIVATE},
    }
    payload = of_kind.get(kind, {"message": message, "status": kind, "details": f"for {to}", "output": "250 OK"})
    uuid = digest([kind, message_id, to, n])
    return {"event": f"Message{kind}", "timestamp": BEGIN + n + 0.25, "uuid": uuid, "payload": payload}


def postal_request(payloads: Sequence[Payload]) -> Payload:
    """A signed request."""
    request = as_json(payloads[0])
    signature = postal_key().sign(request["data"].encode(), padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - Postal's
    return {**request, "headers": {"X-Postal-Signature": b64encode(signature).decode()}}


POSTAL = Provider(
    "Postal",
    "/postal/tracking/",
    {
        "Sent": "delivered",
        "SoftFail": "deferred",
        "HardFail": "failed",
        "Held": "queued",
        "Bounce": "bounced",
        "LinkClicked": "clicked",
        "Loaded": "opened",
    },
    postal,
    postal_request,
)
