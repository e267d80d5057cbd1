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
from collections.abc import Mapping
from typing import Any

from mailglass_reconcile.errors import InvalidWebhookError
from mailglass_reconcile.webhooks import sns, wire
from mailglass_reconcile.webhooks.provider import Kind, Provider, Table, iso
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


def _elements(request: Request) -> list[Any]:
    """Return the request's only event; notifications about the subscription itself give none."""
    body = sns.message(request)
    if body["Type"] != "Notification":
        return []
    if not isinstance(body.get("Message"), str):
        raise InvalidWebhookError("the notification has no message")
    return [wire.from_json(body["Message"])]


def _refine(payload: Mapping[str, Any], kind: Kind) -> Kind:
    is_bounce = kind.type == "suppressed" and payload.get("blocklist_type") in ("mailbox_full", "mailbox_not_found")
    return kind._replace(reason="bounced") if is_bounce else kind


PROVIDER = Provider(
    name="scaleway",
    title="Scaleway",
    lacks_id=frozenset({"suppressed"}),  # what its blocklist stops, which is no message yet
    documentation="https://www.scaleway.com/en/docs/transactional-email/reference-content/webhook-events-payloads/",
    boxes="all but `blocklist_created`",
    retries="not known",
    authentication=sns.authentication(SERVICE),
    max_bytes=sns.MAX_NOTIFICATION_BYTES,
    service=SERVICE,
    confirm=lambda request: sns.confirm(request, SERVICE),
    elements=_elements,
    table=Table(
        kind="type",
        kinds={
            "email_queued": Kind("queued"),
            "email_delivered": Kind("delivered"),
            "email_deferred": Kind("deferred", None, "soft"),
            "email_dropped": Kind("bounced", "bounced", "hard"),
            "email_mailbox_not_found": Kind("bounced", "bounced", "hard"),
            "email_spam": Kind("rejected", "spam"),  # a message that a filter refused, not a complaint
            "email_blocklisted": Kind("suppressed", "other"),
        },
        refine=_refine,
        at=iso("created_at"),
        id="id",
        message_id="email_id",
        recipient="email_to",
        reply=lambda payload: wire.with_code(payload.get("email_response_code"), payload.get("email_response_message")),
    ),
)
