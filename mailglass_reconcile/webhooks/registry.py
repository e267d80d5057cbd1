"""Providers whose webhooks can be read: their records, imported when first needed, and applications' readers."""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from mailglass_reconcile.errors import ConfigurationError, InvalidWebhookError
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import formats, sns
from mailglass_reconcile.webhooks.certificates import Source
from mailglass_reconcile.webhooks.provider import MAX_BYTES, Provider
from mailglass_reconcile.webhooks.wire import Request, Signature

logger = logging.getLogger(__name__)

PROVIDERS = tuple(sorted(providers.built_in()))
"""Canonical names of those that are built in."""

_plugged: dict[str, Provider] = {}
"""Applications' own readers, by canonical name."""

load_readers: Callable[[], None] | None = None
"""Imports the modules of an application that register its readers, before a provider counts as unknown."""


def read(found: Provider, request: Request) -> list[WebhookEvent]:
    """Read a request with a provider's record, as `parse` does."""
    events: list[WebhookEvent] = []
    bad: Counter[str] = Counter()
    parts = list(found.elements(request))
    request_id = found.request_id(request) if found.request_id else None
    for element in parts:
        try:
            made = found.read(element, request_id)
        except Exception as error:  # anything can be in there: it costs this part, not the batch
            bad[str(error) if isinstance(error, InvalidWebhookError) else type(error).__name__] += 1
        else:
            events += made
    if bad:
        why = ", ".join(f"{reason} ({count})" for reason, count in bad.items())
        if bad.total() == len(parts):
            raise InvalidWebhookError(why if len(parts) > 1 else next(iter(bad)))
        logger.error("%d of %d events of a webhook cannot be read and were left out: %s", bad.total(), len(parts), why)
    return [
        event
        for event in events
        if event.message_id is not None or event.recipient is not None or _names_a_message(found, event)
    ]


def _names_a_message(found: Provider, event: WebhookEvent) -> bool:
    """Whether a delivery can be found for an event; an application's own rule may read the id from its metadata."""
    return (found.name in _plugged and bool(event.metadata)) or formats.names_a_message(found.name, event)


def check(found: Provider, request: Request, secret: str, now: dt.datetime) -> None:
    """Verify a request with a provider's record, as `verify` does; `check_secret` has checked the secret."""
    if len(request.body) > found.max_bytes:
        raise InvalidWebhookError("the body is too large")
    found.authentication.verify(request, secret, now.timestamp())


def check_secret(provider: str, secret: object) -> str:
    """Return a secret of a provider, without white space around it, if requests can be verified with it."""
    found = record(provider)
    try:
        if not isinstance(secret, str) or not secret.strip():
            raise ConfigurationError("the secret is empty, or not a string")
        if found.authentication.usable:
            found.authentication.usable(secret.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{providers.canonical(provider)}: {error}") from None
    return secret.strip()


def is_immediate(found: Provider, size: int) -> bool:
    """Whether a signature over a body of *size* bytes is checked within some milliseconds, without parsing it."""
    return found.signature is Signature.OVER_BODY and size <= found.immediate_bytes


def certificate(found: Provider, request: Request, secrets: Sequence[str]) -> Source | None:
    """Return the certificate that a request names, if its signature needs one; the body is not parsed."""
    service = found.service
    sources = (sns.source_in(request, secret, service) for secret in secrets) if service else ()
    return next(filter(None, sources), None)


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
    """Return the record of a provider, or of an application's reader, after loading the modules that register those."""
    if not is_known(provider) and load_readers:
        load_readers()
    return record(provider)


def record(provider: str) -> Provider:
    """Return the record of a provider, given in any known spelling, or of an application's reader."""
    if not is_known(provider):
        known = ", ".join([*PROVIDERS, *_plugged])
        raise ConfigurationError(f"webhooks of this provider cannot be read; known providers: {known}")
    name = providers.canonical(provider)
    return _plugged.get(name) or cast("Provider", providers.record(name))
