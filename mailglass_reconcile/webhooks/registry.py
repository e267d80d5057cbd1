"""Providers whose webhooks can be read and verified: one module each, imported when it is first needed."""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import formats
from mailglass_reconcile.webhooks import providers as modules
from mailglass_reconcile.webhooks.certificates import patiently
from mailglass_reconcile.webhooks.wire import Request, Signature

logger = logging.getLogger(__name__)

PROVIDERS = tuple(sorted(found.name for found in iter_modules(modules.__path__)))
"""Canonical names, which are those of the modules."""


MAX_BYTES = 5 * 1024 * 1024
"""A larger body is refused."""


class Provider(Protocol):
    """What a provider's module has; `max_bytes`, `confirm`, `accepted` and `usable` only if it needs them."""

    SIGNATURE: Signature

    __name__: str

    def elements(self, request: Request) -> Iterable[object]:
        """Return the parts of a request that are read one by one; raise `InvalidWebhookError` if it has none."""

    def events(self, element: object, request: Request) -> Iterable[WebhookEvent]:
        """Return the events of one part; whatever it raises costs this part only."""

    def verify(self, request: Request, secret: str, now: float) -> None:
        """Raise `SignatureError` unless the request was made with *secret*."""


def parse(
    provider: str, body: bytes, headers: Mapping[str, str] | None = None, *, content_type: str | None = None
) -> list[WebhookEvent]:
    """Read a provider's webhook: what `record_webhook` takes. Nothing is verified or stored.

    Types and reject reasons have django-anymail's names. Inbound mail, pings and events of the
    account give no event; an event of a known type that names neither a message nor a recipient gives none and logs a
    warning, once a minute for each provider and type, because the provider must have changed its format. If parts of a
    batch cannot be read, the others are returned, and one line of the log says how many were left out and why.

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
    return read(module(provider), request_of(body, headers, content_type=content_type))


def read(found: Provider, request: Request) -> list[WebhookEvent]:
    """Read a request with a provider's module, as `parse` does."""
    events: list[WebhookEvent] = []
    bad: Counter[str] = Counter()
    parts = list(found.elements(request))
    for element in parts:
        try:
            made = list(found.events(element, request))
        except Exception as error:  # anything can be in there: it costs this part, not the batch
            bad[str(error) if isinstance(error, InvalidWebhookError) else type(error).__name__] += 1
        else:
            events += (one for one in made if formats.names_a_message(found.__name__.rpartition(".")[2], one))
    if bad:
        why = ", ".join(f"{reason} ({count})" for reason, count in bad.items())
        if bad.total() == len(parts):
            raise InvalidWebhookError(why if len(parts) > 1 else next(iter(bad)))
        logger.error("%d of %d events of a webhook cannot be read and were left out: %s", bad.total(), len(parts), why)
    return events


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
    request = request_of(body, headers, url=url)
    secret = check_secret(provider, secret)
    patiently(check, module(provider), request, secret, now or dt.datetime.now(dt.UTC))


def check(found: Provider, request: Request, secret: str, now: dt.datetime) -> None:
    """Verify a request with a provider's module, as `verify` does; `check_secret` has checked the secret.

    Raises:
        CertificateNeededError: The certificate of Amazon SES or Scaleway has to be fetched first.
    """
    if len(request.body) > max_bytes(found, request):
        raise InvalidWebhookError("the body is too large")
    found.verify(request, secret, now.timestamp())


def check_secret(provider: str, secret: object) -> str:
    """Return a secret of a provider, without white space around it, if requests can be verified with it.

    Raises:
        ConfigurationError: It is empty or of another kind; the message names the provider and repeats nothing of it.
    """
    found = module(provider)
    try:
        if not isinstance(secret, str) or not secret.strip():
            raise ConfigurationError("the secret is empty, or not a string")
        if hasattr(found, "usable"):
            found.usable(secret.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{name(provider)}: {error}") from None
    return secret.strip()


def max_bytes(found: Provider, request: Request) -> int:
    """Return how long the body of a request may be: less if its signature stands in it, and its webhooks are small."""
    return found.max_bytes(request) if hasattr(found, "max_bytes") else MAX_BYTES


def request_of(
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str | None = None,
    url: str | None = None,
) -> Request:
    """Return what was received, with the names of headers in lower case.

    Raises:
        InvalidWebhookError: The body is larger than 5 MB.
    """
    if len(body) > MAX_BYTES:
        raise InvalidWebhookError("the body is larger than 5 MB")
    lowered = {name.lower(): value for name, value in dict(headers or {}).items()}
    return Request(bytes(body), lowered, content_type or lowered.get("content-type", ""), url)


def name(provider: str) -> str:
    """Return a provider's canonical name, or what was given if it is not known."""
    return providers.canonical(provider)


def is_known(provider: str) -> bool:
    """Whether a provider's webhooks can be read."""
    return name(provider) in PROVIDERS


def module(provider: str) -> Provider:
    """Return the module of a provider, given in any known spelling.

    Raises:
        ConfigurationError: It has none.
    """
    if not is_known(provider):
        raise ConfigurationError(f"webhooks of this provider cannot be read; known providers: {', '.join(PROVIDERS)}")
    return cast("Provider", import_module(f"{modules.__name__}.{name(provider)}"))
