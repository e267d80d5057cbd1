"""The view that receives the webhooks of all providers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database, receivers
from mailglass_reconcile.errors import BodyTooLargeError, UnknownProviderError
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.receiver.admission import ClientDisconnectedError
from mailglass_reconcile.receiver.receiving import (
    answer_handshake,
    claim_token,
    confirm_subscription,
    public_url,
    verify_any,
)
from mailglass_reconcile.receiver.refusals import refusal
from mailglass_reconcile.record import failures
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.webhooks import registry, sns
from mailglass_reconcile.webhooks.provider import Provider
from mailglass_reconcile.webhooks.wire import Signature, WebhookRequest

METHODS = "GET, HEAD, POST"


def _outside_atomic_requests(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Exempt a view from ATOMIC_REQUESTS of all databases: its transaction begins when the webhook is verified."""
    for alias in connections:
        view = transaction.non_atomic_requests(alias)(view)
    return view


@csrf_exempt
@_outside_atomic_requests
def webhook(request: HttpRequest, provider: str) -> HttpResponse:
    """Verify, read and record a provider's webhook, and respond with 200 after the commit.

    With another status the provider sends it again, or shows what is wrong: `docs/providers.md` lists them.
    """
    if request.method in ("GET", "HEAD"):  # Mandrill and Unisender Go send one before they accept an address
        is_known = registry.is_known(provider)
        return _make_response(200, "ok") if is_known else _refuse(provider, UnknownProviderError())
    try:
        return _respond(request, provider)
    except Exception as error:
        return _refuse(provider, error)


def _respond(request: HttpRequest, provider: str) -> HttpResponse:
    if request.method not in ("POST", "OPTIONS"):
        return _make_response(405, "only POST is answered here", allow=METHODS)
    secret_store.import_custom_provider(provider)
    record = registry.get_provider(provider)
    secrets = secret_store.from_setting(runtime.get_settings()).get(provider)
    if not secrets:
        raise UnknownProviderError(secret_store.NO_SECRET)
    if request.method == "OPTIONS" and not record.handshake:
        return _make_response(405, "only POST is answered here", allow=METHODS)
    respond = _receive if request.method == "POST" else _allow_origin
    return respond(request, record, providers.canonical(provider), secrets)


def _allow_origin(request: HttpRequest, record: Provider, provider: str, secrets: Sequence[str]) -> HttpResponse:
    """Answer the validation request of CloudEvents, which comes before the first event."""
    verify_any(record, registry.make_request(b"", request.headers, url=_address(request, provider)), secrets)
    origin = request.headers.get("WebHook-Request-Origin", "")
    return _make_response(200, "ok", webhook_allowed_origin=origin, webhook_allowed_rate="*")


def _receive(request: HttpRequest, record: Provider, provider: str, secrets: Sequence[str]) -> HttpResponse:
    """Verify a webhook, cheapest checks first, and record its events; nothing connects before it is verified."""
    head = registry.make_request(b"", request.headers, url=_address(request, provider))
    if record.signature is Signature.IN_HEADERS:
        verify_any(record, head, secrets)
    verified = _verify(dataclasses.replace(head, body=_read_body(request, record.max_bytes)), record, secrets)
    events = registry.read_events(record, verified)
    if not events:
        if (text := answer_handshake(record, verified)) is not None:
            return HttpResponse(text, content_type="application/json")
        confirm_subscription(record, verified)
        return _make_response(200, "ok")
    with failures.count_failure(f"a webhook of {provider}"), claim_token(record, verified):
        _record(provider, events)
    return _make_response(200, "ok")


def _read_body(request: HttpRequest, limit: int) -> bytes:
    """Read the body from the stream, which DATA_UPLOAD_MAX_MEMORY_SIZE does not limit."""
    content_length = request.META.get("CONTENT_LENGTH") or ""
    if content_length.isdecimal() and int(content_length) > limit:
        raise BodyTooLargeError("the body is too large")
    try:
        body = bytes(request.read(limit + 1))
    except UnreadablePostError:
        raise ClientDisconnectedError from None
    if len(body) > limit:
        raise BodyTooLargeError("the body is too large")
    return body


def _verify(request: WebhookRequest, record: Provider, secrets: Sequence[str]) -> WebhookRequest:
    """Return a request that is signed with one of the secrets; schedule the fetch of a certificate that is missing."""
    source = registry.find_certificate_source(record, request, secrets)
    if source is not None and source.url not in sns.certificates:
        sns.certificates.schedule_fetch(source)
    verify_any(record, request, secrets)
    return request


def _address(request: HttpRequest, provider: str) -> str:
    base = runtime.get_settings().webhook_url
    return public_url(base.get_secret_value(), provider) if base else request.build_absolute_uri()


def _record(provider: str, events: list[WebhookEvent]) -> None:
    """Record all events of a webhook in one transaction, each for its tenant."""
    by_tenant: dict[str, list[WebhookEvent]] = defaultdict(list)
    for event in events:
        by_tenant[receivers.tenant_of(receivers.as_tracking_event(event))].append(event)
    database.record(
        lambda connection: [
            result
            for tenant, of_tenant in by_tenant.items()
            for result in record_webhook(connection, provider=provider, events=of_tenant, tenant_id=tenant)
        ]
    )


def _refuse(provider: str, error: Exception) -> HttpResponse:
    status, text, headers = refusal(provider, error)
    return _make_response(status, text, **headers)


def _make_response(status: int, text: str, **headers: str) -> HttpResponse:
    header_fields = {name.replace("_", "-").title(): value for name, value in headers.items()}
    response = HttpResponse(text, status=status, content_type="text/plain; charset=utf-8", headers=header_fields)
    # Django's log_response would log each refusal with its path, and mail a 5xx to ADMINS; we log once a minute.
    response._has_been_logged = True
    return response
