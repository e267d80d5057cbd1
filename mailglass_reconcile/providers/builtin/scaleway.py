"""Scaleway Transactional Email: one event a request, through Topics and Events, which sign it.

Followed: https://www.scaleway.com/en/docs/transactional-email/reference-content/webhook-events-payloads/ and
https://www.scaleway.com/en/docs/topics-and-events/reference-content/verifying-webhooks/; for the certificates'
addresses and the signed fields, which are those of SNS,
https://github.com/scaleway/docs-content/blob/main/pages/topics-and-events/api-cli/python-node-topics-events.mdx and
https://github.com/symfony/symfony/blob/8.1/src/Symfony/Component/Mailer/Bridge/Scaleway. Anymail does not read these
webhooks. Not documented: whether a mailbox that is not found was refused by the server or by Scaleway. By the first
page, a dropped message has hard-bounced, and a deferred one has soft-bounced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.providers import sns, wire
from mailglass_reconcile.providers.provider import EventKind, EventTable, Provider, iso_field
from mailglass_reconcile.providers.sns import NotificationService
from mailglass_reconcile.providers.wire import WebhookRequest

SERVICE = NotificationService(
    "Scaleway",
    re.compile(
        r"https://messaging\.s3\.[a-z]{2}-[a-z]{3}\.scw\.cloud/(?P<region>[a-z]{2}-[a-z]{3})/sns/"
        r"sns_certificate_\w{1,64}\.(?:crt|pem)",
        re.ASCII,
    ),
    re.compile(r"https://sns\.mnq\.[a-z0-9-]+\.scaleway\.com/\S*"),
    "https://messaging.s3.fr-par.scw.cloud/{region}/sns/sns-trust-chain.pem",
)


def _elements(request: WebhookRequest) -> list[Any]:
    """Return the request's only event; notifications about the subscription itself give none."""
    body = sns.parse_notification(request)
    if body["Type"] != "Notification":
        return []
    if not isinstance(body.get("Message"), str):
        raise InvalidWebhookError("the notification has no message")
    return [wire.parse_json(body["Message"])]


def _refine(payload: Mapping[str, Any], kind: EventKind) -> EventKind:
    is_bounce = kind.type == "suppressed" and payload.get("blocklist_type") in ("mailbox_full", "mailbox_not_found")
    return kind._replace(reason="bounced") if is_bounce else kind


PROVIDER = Provider(
    name="scaleway",
    title="Scaleway",
    lacks_id=frozenset({"suppressed"}),  # stopped by its blocklist before there is a message
    authentication=sns.make_authentication(SERVICE),
    max_bytes=sns.MAX_NOTIFICATION_BYTES,
    service=SERVICE,
    confirm=lambda request: sns.confirm(request, SERVICE),
    elements=_elements,
    table=EventTable(
        kind="type",
        kinds={
            "email_queued": EventKind("queued"),
            "email_delivered": EventKind("delivered"),
            "email_deferred": EventKind("deferred", None, "soft"),
            "email_dropped": EventKind("bounced", "bounced", "hard"),
            "email_mailbox_not_found": EventKind("bounced", "bounced", "hard"),
            "email_spam": EventKind("rejected", "spam"),  # a message that a filter refused, not a complaint
            "email_blocklisted": EventKind("suppressed", "other"),
        },
        refine=_refine,
        at=iso_field("created_at"),
        id="id",
        message_id="email_id",
        recipient="email_to",
        reply=lambda payload: wire.join_reply(
            payload.get("email_response_code"), payload.get("email_response_message")
        ),
    ),
)
