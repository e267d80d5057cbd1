"""The remedy for an event that was recorded for the wrong tenant: correct the route, and have it sent again."""

from __future__ import annotations

import shlex

from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.humanize import escape_unprintable, sanitize


def tenant_remedy(*, provider: str, type_: str, message_id: str, tenant_id: str) -> str:
    """Return the two steps that repair an event whose delivery belongs to another tenant.

    *message_id* and *tenant_id* are the delivery's. They come from outside, so they are escaped: none can inject a
    command.
    """
    tenant = sanitize(tenant_id)
    return (
        f"1. Route these webhooks to tenant {tenant}, because a stored event keeps its tenant: tenant of webhook_app,"
        " tenant_id of receive or record_webhook, or MAILGLASS_TENANT (in Mailglass, resolve_webhook_tenant)."
        f" 2. {_redelivery_step(provider, type_, message_id, tenant)}"
    )


def _redelivery_step(provider: str, type_: str, message_id: str, tenant: str) -> str:
    record = provider_rules.record(provider)
    if record and record.redelivery:
        return record.redelivery
    request = f"Have {provider_rules.title(provider)} send this webhook again. If it cannot,"
    if record is None or record.has_private_key:
        call = f"receive(connection, '{sanitize(provider)}', body, headers, tenant_id='{tenant}')"
        return f"{request} record the request from your log: `{call}`"
    is_plain = escape_unprintable(message_id) == message_id and "`" not in message_id
    words = [
        "mailglass-reconcile",
        "trigger",
        provider,
        sanitize(type_),
        "--message-id",
        message_id if is_plain else "ID",
    ]
    return f"{request} send a sample, which gets the current time: `{shlex.join(words)}`"
