"""The view that receives the webhooks of all providers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database, signals
from mailglass_reconcile.providers import registry, sns
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.receiver.admission import ClientDisconnectedError
from mailglass_reconcile.receiver.opening import IncomingWebhook, is_answered, public_url
from mailglass_reconcile.receiver.refusals import refusal
from mailglass_reconcile.record import failures
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules.events import WebhookEvent

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

    With another status the provider sends it again, or shows what is wrong: `docs/receiving.md` lists them.
    """
    try:
        return _respond(request, provider)
    except Exception as error:
        return _refuse(provider, error)


def _respond(request: HttpRequest, provider: str) -> HttpResponse:
    """Answer a webhook, cheapest checks first; nothing connects before it is verified."""
    if request.method in ("GET", "HEAD"):  # Mandrill and Unisender Go send one before they accept an address
        registry.load_provider(provider)
        return _make_response(200, "ok")
    if not is_answered(request.method or "", provider):
        return _make_response(405, "only POST is answered here", allow=METHODS)
    registry.load_provider(provider)
    secrets = secret_store.from_setting(runtime.get_settings()).get(provider)
    address = public_url(provider, query=request.META.get("QUERY_STRING", "")) or request.build_absolute_uri()
    incoming = IncomingWebhook(provider, request.headers, secrets=secrets, url=address)
    if request.method == "OPTIONS":
        return _make_response(200, "ok", **incoming.allowed_origin())
    incoming.add_body(_read_body(request, incoming))
    source = incoming.find_certificate_source()
    if source is not None and source.url not in sns.certificates:
        sns.certificates.schedule_fetch(source)
    webhook = incoming.open()
    if webhook.answer is not None:
        return HttpResponse(webhook.answer, content_type="application/json")
    if not webhook.events:
        webhook.confirm()
        return _make_response(200, "ok")
    with failures.count_failure(f"a webhook of {incoming.provider}"), webhook.claim:
        _record(incoming.provider, webhook.events)
    return _make_response(200, "ok")


def _read_body(request: HttpRequest, incoming: IncomingWebhook) -> bytes:
    """Read the body from the stream, which DATA_UPLOAD_MAX_MEMORY_SIZE does not limit."""
    content_length = request.META.get("CONTENT_LENGTH") or ""
    incoming.require_size(int(content_length[:20]) if content_length.isdecimal() else 0)
    try:
        return bytes(request.read(incoming.record.max_bytes + 1))
    except UnreadablePostError:
        raise ClientDisconnectedError from None


def _record(provider: str, events: Sequence[WebhookEvent]) -> None:
    """Record all events of a webhook in one transaction, each for its tenant."""
    by_tenant: dict[str, list[WebhookEvent]] = defaultdict(list)
    for event in events:
        by_tenant[signals.tenant_of(signals.as_tracking_event(event))].append(event)
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
