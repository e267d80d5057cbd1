"""How a webhook is sent again, after it was recorded for the wrong tenant: each provider has its own way, or none."""

from __future__ import annotations

import shlex

from mailglass_reconcile.rules import providers

# https://resend.com/docs/webhooks/retries-and-replays
_REPLAYS = {
    "resend": "open this event under Webhooks in Resend's dashboard, and press Replay",
}

PRIVATE_KEYS = frozenset({"sendgrid", "postal", "ses", "scaleway"})
"""Providers that sign with a private key, so that nothing can be sent in their name."""

WEBHOOK_URL = "https://your.host/webhooks"
"""In place of MAILGLASS_WEBHOOK_URL, if that is not set."""


def remedy(*, provider: str, type_: str, message_id: str, tenant_id: str, url: str | None) -> str:
    """Return what to do about an event whose delivery belongs to another tenant.

    *message_id* and *tenant_id* are the delivery's, *url* is the public address of the receiver.
    """
    return (
        "event and delivery need the same tenant, and a stored event keeps its tenant: first make such webhooks arrive"
        f" for tenant {tenant_id} (tenant of webhook_app, tenant_id of record_webhook or receive, MAILGLASS_TENANT; in"
        " Mailglass resolve_webhook_tenant), then send this one again:"
        f" {_again(provider, type_, message_id, tenant_id, url)}"
    )


def _again(provider: str, type_: str, message_id: str, tenant_id: str, url: str | None) -> str:
    if provider in _REPLAYS:
        return _REPLAYS[provider]
    title = providers.title(provider)
    if provider in PRIVATE_KEYS or provider not in providers.built_in():
        call = f"receive(connection, {provider!r}, body, headers, tenant_id={tenant_id!r})"
        return f"if {title} cannot send it again, record the request from your log with `{call}`"
    words = ["mailglass-reconcile", "trigger", provider, type_, "--message-id", message_id]
    words += ["--to", f"{(url or WEBHOOK_URL).rstrip('/')}/{provider}"]
    return f"if {title} cannot send it again, send one like it, which has the time of now: `{shlex.join(words)}`"
