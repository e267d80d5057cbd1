"""Scaleway Transactional Email: one event a request, through Topics and Events; what those sign.

Followed: https://www.scaleway.com/en/docs/transactional-email/reference-content/webhook-events-payloads/ and
https://www.scaleway.com/en/docs/topics-and-events/reference-content/verifying-webhooks/; for where certificates are and
what is signed, which is what SNS signs,
https://github.com/scaleway/docs-content/blob/main/pages/topics-and-events/api-cli/python-node-topics-events.mdx and
https://github.com/symfony/symfony/blob/8.1/src/Symfony/Component/Mailer/Bridge/Scaleway. Anymail does not read these
webhooks. Not documented: whether a mailbox that is not found was refused by the server or by Scaleway. What it drops
has hard-bounced, what it defers has soft-bounced, by the first page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.rules.events import Bounce, WebhookEvent
from mailglass_reconcile.webhooks import sns, wire
from mailglass_reconcile.webhooks.sns import Service
from mailglass_reconcile.webhooks.wire import Request

SERVICE = Service(
    "Scaleway",
    re.compile(
        r"https://messaging\.s3\.[a-z]{2}-[a-z]{3}\.scw\.cloud/(?P<region>[a-z]{2}-[a-z]{3})/sns/"
        r"sns_certificate_\w{1,64}\.(?:crt|pem)",
        re.ASCII,
    ),
    re.compile(r"https://sns\.mnq\.[a-z0-9-]+\.scaleway\.com/\S*"),
    "https://messaging.s3.fr-par.scw.cloud/{region}/sns/sns-trust-chain.pem",
)

SIGNATURE = wire.Signature.IN_BODY

max_bytes = sns.max_bytes

_TYPES: dict[str, tuple[str, str | None]] = {
    "email_blocklisted": ("suppressed", "other"),
    "email_deferred": ("deferred", None),
    "email_delivered": ("delivered", None),
    "email_dropped": ("bounced", "bounced"),
    "email_mailbox_not_found": ("bounced", "bounced"),
    "email_queued": ("queued", None),
    "email_spam": ("rejected", "spam"),
}
_BOUNCES: dict[str, Bounce] = {"email_deferred": "soft", "email_dropped": "hard", "email_mailbox_not_found": "hard"}


def elements(request: Request) -> list[Any]:
    """Return the request's only event; notifications about the subscription itself give none."""
    body = sns.message(request)
    if body["Type"] != "Notification":
        return []
    if not isinstance(body.get("Message"), str):
        raise InvalidWebhookError("the notification has no message")
    return [wire.from_json(body["Message"])]


def events(element: object, request: Request) -> Iterable[WebhookEvent]:
    """Read one event; `email_spam` is a message that a filter refused, not a complaint."""
    payload = wire.as_object(element, "the message")
    type_, reason = _TYPES.get(str(payload.get("type")), ("unknown", None))
    if type_ == "suppressed" and payload.get("blocklist_type") in ("mailbox_full", "mailbox_not_found"):
        reason = "bounced"
    yield wire.event(
        payload,
        type=type_,
        at=wire.iso(payload.get("created_at")),
        id=payload.get("id"),
        message_id=payload.get("email_id"),
        recipient=payload.get("email_to"),
        reason=reason,
        bounce=bounce(payload),
        smtp=smtp(payload),
    )


def bounce(payload: Mapping[str, Any]) -> Bounce | None:
    """Tell a hard bounce from a soft one by the event's type."""
    return _BOUNCES.get(str(payload.get("type")))


def smtp(payload: Mapping[str, Any]) -> object:
    """Return the code of the server's reply and its text, which have fields of their own."""
    return wire.with_code(payload.get("email_response_code"), payload.get("email_response_message"))


def verify(request: Request, secret: str, now: float) -> None:
    """Check the signature; *secret* is the topic's ARN."""
    sns.verify(request, secret, SERVICE, now)


def confirm(request: Request) -> None:
    """Confirm the subscription of a verified request, if it asks for that."""
    sns.confirm(request, SERVICE)
