"""`webhook_reader`: an application registers a provider that is not built in."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections.abc import Callable, Iterable, Mapping

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.providers import registry
from mailglass_reconcile.providers.provider import Provider
from mailglass_reconcile.providers.signatures import Authentication, Signature
from mailglass_reconcile.providers.wire import WebhookRequest
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.events import WebhookEvent

Read = Callable[[bytes, Mapping[str, str]], Iterable[WebhookEvent]]
Verify = Callable[..., None]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def webhook_reader(name: str, *, read: Read, verify: Verify) -> None:
    """Register a provider that is not built in: `docs/own-provider.md`.

    Call it in a module that `MAILGLASS_IMPORTS` names.

    Args:
        name: The last part of the webhook's URL, and the name in `MAILGLASS_WEBHOOK_SECRETS`: 1 to 64 lower-case
            letters, digits, `-` and `_`.
        read: Called as `read(body, headers)`, with names of headers in lower case; returns a list of `WebhookEvent`,
            empty for a ping. If it raises, the status is 400.
        verify: Called before it as `verify(body, headers, secret=…, url=…, now=…)`; raises `SignatureError` unless the
            body is signed with *secret*. A KeyError, TypeError or ValueError counts as one (401), any other error as
            503.

    Raises:
        ValueError: The name cannot be used, or a built-in provider has it.
        TypeError: A function is a coroutine function.
    """
    canonical = provider_rules.canonical(name)
    if not _NAME.fullmatch(canonical):
        raise ValueError("the name of a reader is 1 to 64 letters, digits, hyphens and underscores")
    if canonical in registry.PROVIDERS:
        raise ValueError(f"webhooks of {canonical} are read by this package")
    for function in (read, verify):
        if inspect.iscoroutinefunction(function):  # a coroutine nobody awaits raises nothing: all would be verified
            raise TypeError("read and verify are called in a thread: write def, not async def")
    registry.register(canonical, _make_definition(canonical, read, verify))


def _make_definition(name: str, read: Read, verify: Verify) -> Provider:
    """Return a provider's definition, made of an application's two functions."""

    def read_request(request: WebhookRequest, request_id: str | None) -> Iterable[WebhookEvent]:
        events = list(read(request.body, request.headers))
        if not all(isinstance(event, WebhookEvent) for event in events):
            raise InvalidWebhookError("the reader has returned something else than WebhookEvents")
        return events

    def verify_request(request: WebhookRequest, secret: str, now: float) -> None:
        at = dt.datetime.fromtimestamp(now, dt.UTC)
        try:
            verify(request.body, request.headers, secret=secret, url=request.url, now=at)
        except InvalidWebhookError as error:
            raise SignatureError(str(error)) from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SignatureError(f"the signature cannot be checked ({type(error).__name__})") from None

    return Provider(
        name=name,
        title=name,
        authentication=Authentication(Signature.ANYWHERE, verify_request, signs_url=True),
        elements=lambda request: [request],
        events=read_request,
    )
