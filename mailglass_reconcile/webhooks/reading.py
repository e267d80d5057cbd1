"""Reading and verifying webhooks without a database: the public functions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import registry
from mailglass_reconcile.webhooks.certificates import patiently
from mailglass_reconcile.webhooks.registry import Provider


def parse(
    provider: str, body: bytes, headers: Mapping[str, str] | None = None, *, content_type: str | None = None
) -> list[WebhookEvent]:
    """Read a provider's webhook: what `record_webhook` takes. Nothing is verified or stored.

    Types and reject reasons have django-anymail's names. Inbound mail, pings and events of the account give no event;
    an event of a known type that names neither a message nor a recipient gives none and logs a warning, once a minute
    for each provider and type, because the provider must have changed its format. If parts of a batch cannot be read,
    the others are returned, and one line of the log says how many were left out and why.

    Args:
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        body: The request's body.
        headers: The request's headers, in any case. Resend's events have their id there.
        content_type: The body's type, if it is not among the headers.

    Returns:
        The events, in their order; their metadata holds nothing but tags, the region of SES, and whether a machine
        opened the message.

    Raises:
        InvalidWebhookError: The body, or every part of it, cannot be read; the message repeats nothing of it.
        ConfigurationError: The provider is not known.
    """
    return registry.read(_found(provider), registry.request_of(body, headers, content_type=content_type))


def verify(
    provider: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    secret: str,
    url: str | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Check that a webhook comes from the provider; return if it does.

    Args:
        provider: The provider's name in any known spelling.
        body: The request's body, byte for byte.
        headers: The request's headers, in any case.
        secret: What the provider signs with, or the user name and password in its address (`docs/providers.md`).
        url: The webhook's public address, exactly as it was entered at the provider; only Mandrill's signature has it.
        now: The time to compare a signature's with; None is now.

    Raises:
        SignatureError: It does not, or its signature is too old.
        ConfigurationError: The provider is not known, the secret cannot be used, or a package is missing.
        MailglassReconcileError: The certificate of Amazon SES or Scaleway cannot be fetched; try again.
    """
    found, request = _found(provider), registry.request_of(body, headers, url=url)
    secret = registry.check_secret(provider, secret)
    patiently(registry.check, found, request, secret, now or dt.datetime.now(dt.UTC))


def _found(provider: str) -> Provider:
    if not registry.is_known(provider):
        from mailglass_reconcile import runtime  # noqa: PLC0415 - it brings SQLAlchemy; only an own reader needs it

        runtime.load_imports()
    return registry.module(provider)
