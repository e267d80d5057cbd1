"""The webhooks of all providers: `path("webhooks/", include("mailglass_reconcile.contrib.django.urls"))`."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database, receivers
from mailglass_reconcile.errors import InvalidEventError, InvalidWebhookError, SignatureError
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.receiver.receiving import (
    answer_handshake,
    claim_token,
    confirm_subscription,
    public_url,
    verify_any,
)
from mailglass_reconcile.record import failures
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.webhooks import registry, sns
from mailglass_reconcile.webhooks.certificates import UnavailableError
from mailglass_reconcile.webhooks.provider import Provider
from mailglass_reconcile.webhooks.wire import Signature, WebhookRequest

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 30
METHODS = "GET, HEAD, POST"

_throttle = LogThrottle()


class TooLargeError(Exception):
    """The body is larger than the provider's webhooks are."""


def _outside_atomic_requests(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let no database wrap a view in a transaction: ours begins when the webhook is verified."""
    for alias in connections:
        view = transaction.non_atomic_requests(alias)(view)
    return view


@csrf_exempt
@_outside_atomic_requests
def webhook(request: HttpRequest, provider: str) -> HttpResponse:
    """Verify, read and record a provider's webhook, and answer 200 after the commit.

    Other answers make the provider send it again, or say what is wrong with it: `docs/providers.md` lists them.
    """
    if request.method in ("GET", "HEAD"):  # Mandrill and Unisender Go ask before they accept an address
        return _answer(200, "ok") if registry.is_known(provider) else _unknown()
    if request.method not in ("POST", "OPTIONS"):
        return _answer(405, "only POST is answered here", allow=METHODS)
    secret_store.import_custom_provider(provider)
    known = secret_store.from_setting(runtime.get_settings()).get(provider) if registry.is_known(provider) else ()
    if not known:
        return _unknown()
    found = registry.get_provider(provider)
    if request.method == "OPTIONS" and not found.handshake:
        return _answer(405, "only POST is answered here", allow=METHODS)
    take = _receive if request.method == "POST" else _allow
    try:
        return take(request, found, providers.canonical(provider), known)
    except Exception as error:
        return _refusal(found, providers.canonical(provider), error)


def _allow(request: HttpRequest, found: Provider, provider: str, known: Sequence[str]) -> HttpResponse:
    """Answer the validation of CloudEvents, which asks before the first event whether its origin is allowed."""
    verify_any(found, registry.make_request(b"", request.headers, url=_address(request, provider)), known)
    origin = request.headers.get("WebHook-Request-Origin", "")
    return _answer(200, "ok", webhook_allowed_origin=origin, webhook_allowed_rate="*")


def _receive(request: HttpRequest, found: Provider, provider: str, known: Sequence[str]) -> HttpResponse:
    """Take a webhook step by step, the cheapest first; nothing connects before it was verified."""
    head = registry.make_request(b"", request.headers, url=_address(request, provider))
    if found.signature is Signature.IN_HEADERS:
        verify_any(found, head, known)
    verified = _verified(dataclasses.replace(head, body=_body(request, found.max_bytes)), found, known)
    events = registry.read_events(found, verified)
    if not events:
        if (text := answer_handshake(found, verified)) is not None:
            return HttpResponse(text, content_type="application/json")
        confirm_subscription(found, verified)
        return _answer(200, "ok")
    with failures.counted(f"a webhook of {provider}"), claim_token(found, verified):
        _record(provider, events)
    return _answer(200, "ok")


def _body(request: HttpRequest, limit: int) -> bytes:
    """Read the body from the stream, which DATA_UPLOAD_MAX_MEMORY_SIZE does not limit."""
    announced = request.META.get("CONTENT_LENGTH") or ""
    if announced.isdecimal() and int(announced) > limit:
        raise TooLargeError
    body = bytes(request.read(limit + 1))
    if len(body) > limit:
        raise TooLargeError
    return body


def _verified(request: WebhookRequest, found: Provider, known: Sequence[str]) -> WebhookRequest:
    """Return a request that one of the secrets has signed; a certificate that is not there yet is fetched meanwhile."""
    source = registry.find_certificate_source(found, request, known)
    if source is not None and source.url not in sns.certificates:
        sns.certificates.schedule_fetch(source)
    verify_any(found, request, known)
    return request


def _address(request: HttpRequest, provider: str) -> str:
    base = runtime.get_settings().webhook_url
    return public_url(base.get_secret_value(), provider) if base else request.build_absolute_uri()


def _record(provider: str, events: list[WebhookEvent]) -> None:
    """Record all events of a webhook in one transaction, each for its tenant."""
    by_tenant: dict[str, list[WebhookEvent]] = defaultdict(list)
    for event in events:
        by_tenant[receivers.tenant_of(receivers.as_tracking_event(event))].append(event)
    recorded = database.with_retries(
        lambda lent: [
            done
            for tenant, of_tenant in by_tenant.items()
            for done in record_webhook(lent, provider=provider, events=of_tenant, tenant_id=tenant)
        ]
    )
    database.after_commit(recorded)


def _refusal(found: Provider, provider: str, error: Exception) -> HttpResponse:
    """Return the answer to a webhook that was not recorded; the log has a line for each cause and minute."""
    again = found.retry_status
    match error:
        case SignatureError():
            _log(logging.WARNING, provider, str(error))
            if found.rejection_status != 401:
                return _answer(found.rejection_status, "invalid signature", retry_after=str(RETRY_AFTER_SECONDS))
            return _answer(401, "invalid signature", www_authenticate='Basic realm="webhooks"')
        case InvalidWebhookError() | InvalidEventError():
            _log(logging.ERROR, provider, str(error))
            return _answer(400, "the body cannot be read")
        case TooLargeError():
            _log(logging.WARNING, provider, "its body is too large")
            return _answer(413, "the body is too large")
        case UnreadablePostError():
            return _answer(400, "the client has left")
        case UnavailableError():
            _log(logging.WARNING, provider, str(error))
        case _:  # also of a function of an application's, or a fault of ours
            failures.log(f"a webhook of {provider}", error)
    return _answer(again, "try again later", retry_after=str(RETRY_AFTER_SECONDS))


def _log(level: int, provider: str, cause: str) -> None:
    if _throttle.allow((provider, cause)):
        logger.log(level, "a webhook of %s was refused: %s", provider, cause)


def _unknown() -> HttpResponse:
    if _throttle.allow(None):
        logger.warning("a webhook was answered with 404: MAILGLASS_WEBHOOK_SECRETS has no secret for its provider")
    return _answer(404, "no secret is configured for this provider")


def _answer(status: int, text: str, **headers: str) -> HttpResponse:
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8", headers=named)
