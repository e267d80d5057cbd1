"""Reading and verifying webhooks without a database: the public functions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import registry, sns


def parse(
    provider: str, body: bytes, headers: Mapping[str, str] | None = None, *, content_type: str | None = None
) -> list[WebhookEvent]:
    """Parse a provider's webhook into events for `record_webhook`. Nothing is verified or stored.

    Inbound mail, pings and events of the account give no event. If parts of a batch cannot be parsed, the others are
    returned, and the log has a line.

    Args:
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        body: The request's body, byte for byte.
        headers: The request's headers, in any case; Resend's have the event's id.
        content_type: The body's type, if it is not among the headers.

    Returns:
        The events, in their order.

    Raises:
        InvalidWebhookError: The body cannot be parsed; the message repeats nothing of it.
        ConfigurationError: The provider is not known.
    """
    return registry.read(registry.find(provider), registry.request_of(body, headers, content_type=content_type))


def verify(
    provider: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    secret: str,
    url: str | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Check that a webhook comes from the provider; return if it does, and raise `SignatureError` if not.

    Args:
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        body: The request's body, byte for byte.
        headers: The request's headers, in any case.
        secret: The provider's secret, or `user:password`.
        url: The webhook's public address, exactly as entered at the provider; only Mandrill's signature needs it.
        now: The time to compare a signature's with; None is now.

    Raises:
        SignatureError: It does not, or its signature is too old.
        ConfigurationError: The provider is not known, the secret cannot be used, or a package is missing.
        MailglassReconcileError: The certificate of Amazon SES or Scaleway cannot be fetched; try again.
    """
    found, request = registry.find(provider), registry.request_of(body, headers, url=url)
    secret = registry.check_secret(provider, secret)
    sns.certificates.wait(registry.certificate(found, request, [secret]))
    registry.check(found, request, secret, now or dt.datetime.now(dt.UTC))
