"""Registry of the providers: the built-in ones, imported on first use, and those that an application registers."""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from mailglass_reconcile.errors import (
    BodyTooLargeError,
    ConfigurationError,
    InvalidWebhookError,
    UnknownProviderError,
)
from mailglass_reconcile.providers import formats, sns
from mailglass_reconcile.providers.certificates import CertificateSource
from mailglass_reconcile.providers.provider import MAX_BYTES, Provider
from mailglass_reconcile.providers.signatures import Signature
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.events import WebhookEvent

logger = logging.getLogger(__name__)

PROVIDERS = tuple(sorted(provider_rules.built_in()))
"""Canonical names of the built-in providers."""

_custom_providers: dict[str, Provider] = {}
"""Providers that an application has registered, by canonical name."""

load_custom_providers: Callable[[], None] | None = None
"""Hook that imports the application's modules, which register its providers, before a provider counts as unknown."""


def read_events(provider: Provider, request: WebhookRequest) -> list[WebhookEvent]:
    """Read the events of a request with a provider's definition, as `parse` does."""
    events: list[WebhookEvent] = []
    failures: Counter[str] = Counter()
    elements = list(provider.elements(request))
    request_id = provider.request_id(request) if provider.request_id else None
    for element in elements:
        try:
            read = provider.read(element, request_id)
        except Exception as error:  # an element may hold anything: it is lost, not the batch
            failures[str(error) if isinstance(error, InvalidWebhookError) else type(error).__name__] += 1
        else:
            events += read
    if failures:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in failures.items())
        if failures.total() == len(elements):
            raise InvalidWebhookError(reasons if len(elements) > 1 else next(iter(failures)))
        logger.error(
            "%d of %d events of a webhook cannot be read and were left out: %s",
            failures.total(),
            len(elements),
            reasons,
        )
    # Of an application's provider, its key rule may read the metadata.
    is_custom = provider.name in _custom_providers
    return [
        event for event in events if (is_custom and event.metadata) or formats.identify_or_warn(provider.name, event)
    ]


def verify_request(provider: Provider, request: WebhookRequest, secret: str, now: dt.datetime) -> None:
    """Verify a request with a provider's definition, as `verify` does; *secret* comes from `validate_secret`."""
    if len(request.body) > provider.max_bytes:
        raise BodyTooLargeError("the body is too large")
    provider.authentication.verify(request, secret, now.timestamp())


def validate_secret(provider: str, secret: object) -> str:
    """Return a provider's secret without white space around it; raise `ConfigurationError` if it cannot be used."""
    authentication = load_provider(provider).authentication
    try:
        if not isinstance(secret, str) or not secret.strip():
            raise ConfigurationError("the secret is empty, or not a string")
        if _PLACEHOLDER.search(secret):
            raise ConfigurationError("the secret contains ${...}: that variable was not replaced by its value")
        if authentication.validate_secret:
            authentication.validate_secret(secret.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{provider_rules.canonical(provider)}: {error}") from None
    return secret.strip()


_PLACEHOLDER = re.compile(r"\$\{[^}]*\}")


def is_immediate(provider: Provider, size: int) -> bool:
    """Return True if the signature of a body of *size* bytes is verified in milliseconds, without parsing it."""
    return provider.signature is Signature.OVER_BODY and size <= provider.immediate_bytes


def find_certificate_source(
    provider: Provider, request: WebhookRequest, secrets: Sequence[str]
) -> CertificateSource | None:
    """Return the source of the certificate that a request names, if it needs one; the body is not parsed."""
    service = provider.service
    sources = (sns.find_certificate_source(request, secret, service) for secret in secrets) if service else ()
    return next(filter(None, sources), None)


def make_request(
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str | None = None,
    url: str | None = None,
) -> WebhookRequest:
    """Return a request with the names of its headers in lower case."""
    if len(body) > MAX_BYTES:
        raise BodyTooLargeError("the body is larger than 5 MB")
    lower_headers = {name.lower(): value for name, value in dict(headers or {}).items()}
    return WebhookRequest(bytes(body), lower_headers, content_type or lower_headers.get("content-type", ""), url)


def register(name: str, provider: Provider) -> None:
    """Register a provider that is not built in; *name* is canonical and none of `PROVIDERS`."""
    _custom_providers[name] = provider
    provider_rules.accept(name)


def is_known(provider: str) -> bool:
    """Return True if a provider is built in or registered."""
    name = provider_rules.canonical(provider)
    return name in PROVIDERS or name in _custom_providers


def load_provider(provider: str) -> Provider:
    """Return a provider's definition; import the application's modules first if the provider is not known."""
    if not is_known(provider) and load_custom_providers:
        load_custom_providers()
    return get_provider(provider)


def get_provider(provider: str) -> Provider:
    """Return the definition of a built-in or registered provider, by any known spelling.

    Raises:
        UnknownProviderError: There is none.
    """
    if not is_known(provider):
        names = ", ".join([*PROVIDERS, *_custom_providers])
        raise UnknownProviderError(f"webhooks of this provider cannot be read; known providers: {names}")
    name = provider_rules.canonical(provider)
    return _custom_providers.get(name) or cast("Provider", provider_rules.load_definition(name))
