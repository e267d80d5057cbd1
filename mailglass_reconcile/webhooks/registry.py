"""Providers whose webhooks can be read: one module each, imported when first needed, and applications' readers."""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import formats, sns
from mailglass_reconcile.webhooks import providers as modules
from mailglass_reconcile.webhooks.certificates import Source
from mailglass_reconcile.webhooks.sns import Service
from mailglass_reconcile.webhooks.wire import Request, Signature

logger = logging.getLogger(__name__)

PROVIDERS = tuple(sorted(found.name for found in iter_modules(modules.__path__)))
"""Canonical names, which are those of the modules."""

_plugged: dict[str, Provider] = {}
"""Applications' own readers, by canonical name."""

load_readers: Callable[[], None] | None = None
"""Imports the modules of an application that register its readers, before a provider counts as unknown."""


MAX_BYTES = 5 * 1024 * 1024
"""A larger body is refused."""


class Provider(Protocol):
    """What a provider's module has.

    `BUSY`, `SERVICE`, `IMMEDIATE_BYTES`, `max_bytes`, `claimed`, `confirm` and `usable` only if it needs them.
    """

    SIGNATURE: Signature

    __name__: str

    def elements(self, request: Request) -> Iterable[object]:
        """Return the parts of a request that are read one by one; raise `InvalidWebhookError` if it has none."""

    def events(self, element: object, request: Request) -> Iterable[WebhookEvent]:
        """Return the events of one part; an error costs this part only."""

    def verify(self, request: Request, secret: str, now: float) -> None:
        """Raise `SignatureError` unless the request was made with *secret*."""


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
            events += (one for one in made if _names_a_message(found, one))
    if bad:
        why = ", ".join(f"{reason} ({count})" for reason, count in bad.items())
        if bad.total() == len(parts):
            raise InvalidWebhookError(why if len(parts) > 1 else next(iter(bad)))
        logger.error("%d of %d events of a webhook cannot be read and were left out: %s", bad.total(), len(parts), why)
    return events


def _names_a_message(found: Provider, event: WebhookEvent) -> bool:
    """Whether a delivery can be found for an event; an application's own rule may read the id from its metadata."""
    name = found.__name__.rpartition(".")[2]
    return (name in _plugged and bool(event.metadata)) or formats.names_a_message(name, event)


def check(found: Provider, request: Request, secret: str, now: dt.datetime) -> None:
    """Verify a request with a provider's module, as `verify` does; `check_secret` has checked the secret."""
    if len(request.body) > max_bytes(found, request):
        raise InvalidWebhookError("the body is too large")
    found.verify(request, secret, now.timestamp())


def check_secret(provider: str, secret: object) -> str:
    """Return a secret of a provider, without white space around it, if requests can be verified with it."""
    found = module(provider)
    try:
        if not isinstance(secret, str) or not secret.strip():
            raise ConfigurationError("the secret is empty, or not a string")
        if hasattr(found, "usable"):
            found.usable(secret.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{providers.canonical(provider)}: {error}") from None
    return secret.strip()


def max_bytes(found: Provider, request: Request) -> int:
    """Return how long the body of a request may be: less if its signature stands in it, and its webhooks are small."""
    return found.max_bytes(request) if hasattr(found, "max_bytes") else MAX_BYTES


def is_immediate(found: Provider, size: int) -> bool:
    """Whether a signature over a body of *size* bytes is checked within some milliseconds, without parsing it."""
    return found.SIGNATURE is Signature.OVER_BODY and size <= getattr(found, "IMMEDIATE_BYTES", MAX_BYTES)


def certificate(found: Provider, request: Request, secrets: Sequence[str]) -> Source | None:
    """Return the certificate that a request names, if its signature needs one; the body is not parsed."""
    service = service_of(found)
    sources = (sns.source_in(request, secret, service) for secret in secrets) if service else ()
    return next(filter(None, sources), None)


def service_of(found: Provider) -> Service | None:
    """Return the service whose certificates sign a provider's webhooks, if they are fetched."""
    return getattr(found, "SERVICE", None)


def busy(found: Provider) -> int:
    """Return the status that makes a provider send a webhook again: 503, or 429 if it gives up after a 5xx."""
    return getattr(found, "BUSY", 503)


def request_of(
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str | None = None,
    url: str | None = None,
) -> Request:
    """Return what was received, with the names of headers in lower case."""
    if len(body) > MAX_BYTES:
        raise InvalidWebhookError("the body is larger than 5 MB")
    lowered = {name.lower(): value for name, value in dict(headers or {}).items()}
    return Request(bytes(body), lowered, content_type or lowered.get("content-type", ""), url)


def plug(provider: str, reader: Provider) -> None:
    """Let *reader* read a provider's webhooks; its canonical name is none of `PROVIDERS`."""
    _plugged[provider] = reader


def is_known(provider: str) -> bool:
    """Whether a provider's webhooks can be read."""
    name = providers.canonical(provider)
    return name in PROVIDERS or name in _plugged


def find(provider: str) -> Provider:
    """Return the module of a provider, or an application's reader, after loading the modules that register those."""
    if not is_known(provider) and load_readers:
        load_readers()
    return module(provider)


def module(provider: str) -> Provider:
    """Return the module of a provider, given in any known spelling, or an application's reader."""
    if not is_known(provider):
        known = ", ".join([*PROVIDERS, *_plugged])
        raise ConfigurationError(f"webhooks of this provider cannot be read; known providers: {known}")
    name = providers.canonical(provider)
    return _plugged.get(name) or cast("Provider", import_module(f"{modules.__name__}.{name}"))
