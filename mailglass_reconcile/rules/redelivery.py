"""How a webhook is sent again, after it was recorded for the wrong tenant: each provider has its own way, or none."""

from __future__ import annotations

import shlex

from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.humanize import escape_unprintable, sanitize


def remedy(*, provider: str, type_: str, message_id: str, tenant_id: str) -> str:
    """Return what to do about an event whose delivery belongs to another tenant.

    *message_id* and *tenant_id* are the delivery's; they come from outside, so neither can plant a command.
    """
    tenant = sanitize(tenant_id)
    return (
        "event and delivery need the same tenant, and a stored event keeps its tenant: first make such webhooks arrive"
        f" for tenant {tenant} (tenant of webhook_app, tenant_id of record_webhook or receive, MAILGLASS_TENANT; in"
        " Mailglass resolve_webhook_tenant), then send this one again:"
        f" {_again(provider, type_, message_id, tenant)}"
    )


def _again(provider: str, type_: str, message_id: str, tenant: str) -> str:
    record = providers.record(provider)
    if record and record.redelivery:
        return record.redelivery
    title = providers.title(provider)
    if record is None or record.has_private_key:
        call = f"receive(connection, '{sanitize(provider)}', body, headers, tenant_id='{tenant}')"
        return f"if {title} cannot send it again, record the request from your log with `{call}`"
    is_plain = escape_unprintable(message_id) == message_id and "`" not in message_id
    words = [
        "mailglass-reconcile",
        "trigger",
        provider,
        sanitize(type_),
        "--message-id",
        message_id if is_plain else "ID",
    ]
    return f"if {title} cannot send it again, send one like it, which has the time of now: `{shlex.join(words)}`"
