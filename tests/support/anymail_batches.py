"""Providers that post events in batches: their payloads, with their own field names."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Sequence

from anymail_wire import AUTH, BEGIN, KEY, PRIVATE, URL, Payload, Provider, as_json, digest, iso


def sendgrid(kind: str, message_id: str, to: str, n: int) -> Payload:
    """An entry of a batch, with the id that Anymail gave to the message."""
    common = {
        "event": kind,
        "email": to,
        "timestamp": BEGIN + n,
        "anymail_id": message_id,
        "sg_message_id": f"14c5d75ce93.dfd.64b469.filter0001.{n}",
        "sg_event_id": digest([kind, message_id, to, n]),
        "category": ["welcome"],
        "who": to,
    }
    more = {
        "dropped": {"reason": "Bounced Address"},
        "bounce": {"reason": f"550 <{to}>", "type": "bounce", "status": "5.1.1"},
        "deferred": {"response": f"400 <{to}> later", "attempt": "1"},
        "open": {"useragent": PRIVATE, "ip": PRIVATE},
        "click": {"useragent": PRIVATE, "ip": PRIVATE, "url": URL},
    }
    return {**common, **more.get(kind, {})}


SENDGRID = Provider(
    "SendGrid",
    "/sendgrid/tracking/",
    {
        "processed": "queued",
        "deferred": "deferred",
        "delivered": "delivered",
        "bounce": "bounced",
        "dropped": "suppressed",
        "open": "opened",
        "click": "clicked",
        "spamreport": "complained",
        "unsubscribe": "unsubscribed",
        "group_unsubscribe": "unsubscribed",
        "group_resubscribe": "subscribed",
    },
    sendgrid,
    as_json,
    batches=True,
    differs={"bounce": {"reject_reason": None}, "dropped": {"type": "rejected"}},
)


def sparkpost(kind: str, message_id: str, to: str, n: int) -> Payload:
    """An entry of a batch: `class/type`, or `class/type/bounce_class`."""
    class_, type_, *bounce = kind.split("/")
    event = {
        "type": type_,
        "event_id": str(int(digest([kind, message_id, to, n]), 16)),
        "transmission_id": message_id,
        "message_id": "000443ee14578172be22",
        "timestamp": str(BEGIN + n),
        "rcpt_to": to.lower(),
        "raw_rcpt_to": to,
        "rcpt_meta": {"who": to},
        "campaign_id": "welcome",
        "raw_reason": f"550 <{to}>",
        "ip_address": PRIVATE,
        "user_agent": PRIVATE,
        "target_link_url": URL,
        **({"bounce_class": bounce[0]} if bounce else {}),
    }
    return {"msys": {class_: event}}


SPARKPOST = Provider(
    "SparkPost",
    "/sparkpost/tracking/",
    {
        "message_event/injection": "queued",
        "message_event/delivery": "delivered",
        "message_event/delay/21": "deferred",
        "message_event/bounce/10": "bounced",
        "message_event/bounce/60": "autoresponded",
        "message_event/out_of_band/30": "bounced",
        "message_event/policy_rejection/25": "rejected",
        "message_event/spam_complaint": "complained",
        "gen_event/generation_failure": "failed",
        "gen_event/generation_rejection": "rejected",
        "track_event/open": "opened",
        "track_event/click": "clicked",
        "unsubscribe_event/list_unsubscribe": "unsubscribed",
        "unsubscribe_event/link_unsubscribe": "unsubscribed",
    },
    sparkpost,
    as_json,
    batches=True,
    differs={"message_event/delay/21": {"reject_reason": "bounced"}},
)


def mailjet(kind: str, message_id: str, to: str, n: int) -> Payload:
    """An entry of a batch; the id is an integer beyond what a double holds."""
    event, _, error = kind.partition("/")
    return {
        "event": event,
        "time": BEGIN + n,
        "MessageID": int(message_id),
        "Message_GUID": "9fdb4e91-0a4d-4c5b-bb2d-1f1b6c2ae2d1",
        "email": to,
        "mj_contact_id": 98,
        "customcampaign": "welcome",
        "Payload": json.dumps({"who": to}),
        "ip": PRIVATE,
        "agent": PRIVATE,
        "url": URL,
        **({"error": error, "error_related_to": "recipient", "hard_bounce": error != "greylisted"} if error else {}),
    }


MAILJET = Provider(
    "Mailjet",
    "/mailjet/tracking/",
    {
        "sent": "delivered",
        "open": "opened",
        "click": "clicked",
        "bounce/user unknown": "bounced",
        "bounce/greylisted": "deferred",
        "blocked/preblocked": "rejected",
        "spam": "complained",
        "unsub": "unsubscribed",
    },
    mailjet,
    as_json,
    batches=True,
)


def mandrill(kind: str, message_id: str, to: str, n: int) -> Payload:
    """An entry of a batch."""
    return {
        "event": kind,
        "_id": message_id,
        "ts": BEGIN + n,
        "ip": PRIVATE,
        "user_agent": PRIVATE,
        "url": URL,
        "msg": {
            "_id": message_id,
            "ts": BEGIN,
            "email": to,
            "sender": "shop@example.com",
            "subject": "Hi",
            "tags": ["welcome"],
            "metadata": {"who": to},
            "diag": f"smtp;550 <{to}>",
            "opens": [{"ts": BEGIN + n, "ip": PRIVATE}],
        },
    }


def mandrill_request(payloads: Sequence[Payload]) -> Payload:
    """A signed form."""
    events = json.dumps(payloads)
    signed = f"http://{AUTH}@testserver/mandrill/mandrill_events{events}"
    signature = b64encode(hmac.new(KEY.encode(), signed.encode(), "sha1").digest()).decode()
    return {"data": {"mandrill_events": events}, "headers": {"X-Mandrill-Signature": signature}}


MANDRILL = Provider(
    "Mandrill",
    "/mandrill/",
    {
        "send": "sent",
        "deferral": "deferred",
        "hard_bounce": "bounced",
        "soft_bounce": "bounced",
        "reject": "rejected",
        "open": "opened",
        "click": "clicked",
        "spam": "complained",
        "unsub": "unsubscribed",
    },
    mandrill,
    mandrill_request,
    batches=True,
    differs={"hard_bounce": {"reject_reason": None}, "soft_bounce": {"reject_reason": None}},
)


def mailtrap(kind: str, message_id: str, to: str, n: int) -> Payload:
    """An entry of a batch."""
    return {
        "event": kind,
        "event_id": digest([kind, message_id, to, n]),
        "timestamp": BEGIN + n,
        "message_id": message_id,
        "sending_stream": "transactional",
        "email": to,
        "category": "welcome",
        "custom_variables": {"who": to},
        "response": f"550 <{to}>",
        "ip": PRIVATE,
        "user_agent": PRIVATE,
        "url": URL,
    }


MAILTRAP = Provider(
    "Mailtrap",
    "/mailtrap/tracking/",
    {
        "delivery": "delivered",
        "soft bounce": "deferred",
        "suspension": "deferred",
        "bounce": "bounced",
        "reject": "rejected",
        "open": "opened",
        "click": "clicked",
        "spam": "complained",
        "unsubscribe": "unsubscribed",
    },
    mailtrap,
    lambda payloads: as_json({"events": payloads}),
    batches=True,
)


def unisender_go(kind: str, message_id: str, to: str, n: int) -> Payload:
    """An entry of a batch; times are in UTC without saying so."""
    return {
        "job_id": "1ZymBc-00041N-9X",
        "metadata": {"anymail_id": message_id, "who": to},
        "email": to,
        "status": kind,
        "event_time": iso(n, "").replace("T", " "),
        "url": URL,
        "comment": f"no {to}",
        "delivery_info": {
            "delivery_status": "err_user_unknown" if kind == "hard_bounced" else "ok",
            "destination_response": f"550 <{to}>",
            "user_agent": PRIVATE,
            "ip": PRIVATE,
        },
    }


def unisender_go_request(payloads: Sequence[Payload]) -> Payload:
    """A signed request."""
    events = [{"event_name": "transactional_email_status", "event_data": payload} for payload in payloads]
    body = json.dumps({"auth": KEY, "events_by_user": [{"user_id": 456, "events": events}]})
    auth = hashlib.md5(body.encode()).hexdigest()  # noqa: S324 - Unisender Go's
    return {"data": body.replace(KEY, auth), "content_type": "application/json"}


UNISENDER_GO = Provider(
    "Unisender Go",
    "/unisender_go/tracking/",
    {
        "sent": "sent",
        "delivered": "delivered",
        "soft_bounced": "deferred",
        "hard_bounced": "bounced",
        "opened": "opened",
        "clicked": "clicked",
        "spam": "complained",
        "unsubscribed": "unsubscribed",
        "subscribed": "subscribed",
    },
    unisender_go,
    unisender_go_request,
    batches=True,
)
