"""`parse` and `verify`: the public functions that need no database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.rules.events import WebhookEvent


def parse(
    provider: str, body: bytes, headers: Mapping[str, str] | None = None, *, content_type: str | None = None
) -> list[WebhookEvent]:
    """Parse a provider's webhook into events for `record_webhook`, without verifying or storing it.

    Inbound mail, pings and events of the account give no event. If parts of a batch cannot be parsed, the other events
    are returned and an error is logged.

    Args:
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        body: The request's body, byte for byte.
        headers: The request's headers, in any case; Resend's have the event's id.
        content_type: The body's type, if it is not among the headers.

    Returns:
        The events, in their order.

    Raises:
        InvalidWebhookError: The body cannot be parsed; the message repeats nothing of it.
        UnknownProviderError: The provider is not known.
    """
    return registry.read_events(
        registry.load_provider(provider), registry.make_request(body, headers, content_type=content_type)
    )


def verify(
    provider: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    secret: str,
    url: str | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Verify that a webhook comes from the provider: return if it does, and raise `SignatureError` if not.

    Args:
        provider: The provider's name in any known spelling, such as `Amazon SES`.
        body: The request's body, byte for byte.
        headers: The request's headers, in any case.
        secret: The provider's secret, or `user:password`.
        url: The webhook's public URL, exactly as entered at the provider; only Mandrill's signature needs it.
        now: The time by which a signature's age is measured; None is now.

    Raises:
        SignatureError: It does not, or its signature is too old.
        UnknownProviderError: The provider is not known.
        ConfigurationError: The secret cannot be used, or a package is missing.
        MailglassReconcileError: The certificate of Amazon SES or Scaleway cannot be fetched; try again.
    """
    definition, request = registry.load_provider(provider), registry.make_request(body, headers, url=url)
    secret = registry.validate_secret(provider, secret)
    sns.certificates.require(registry.find_certificate_source(definition, request, [secret]))
    registry.verify_request(definition, request, secret, now or dt.datetime.now(dt.UTC))
