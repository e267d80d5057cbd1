"""The response of our views to a webhook: it is recorded on Django's connection, in a transaction of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, UnreadablePostError

from mailglass_reconcile.contrib.django import database, project, signals
from mailglass_reconcile.contrib.django.views import WebhookView
from mailglass_reconcile.errors import UnknownProviderError
from mailglass_reconcile.providers import registry
from mailglass_reconcile.receiver.admission import ClientDisconnectedError, ForeignHostError
from mailglass_reconcile.receiver.log import log_recorded
from mailglass_reconcile.receiver.opening import IncomingWebhook, public_url, require_method
from mailglass_reconcile.receiver.refusals import refusal
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.record.after_commit import Recorded
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules.events import WebhookEvent


def respond(view: WebhookView, request: HttpRequest, provider: str, unread: Sequence[str]) -> HttpResponse:
    """Respond to a request to *view*; *unread* are parameters of its URL that nothing reads, perhaps a tenant's."""
    try:
        if unread:
            raise UnknownProviderError("its URL has a parameter, and webhook_view no function tenant= that reads it")
        return _respond(view, request, provider)
    except Exception as error:
        # An application's functions read the Host, too.
        cause = ForeignHostError() if isinstance(error, DisallowedHost) else error
        status, text, headers = refusal(provider, cause)
        return _make_response(status, text, **headers)


def _respond(view: WebhookView, request: HttpRequest, provider: str) -> HttpResponse:
    """Answer a webhook, cheapest checks first; only the addresses of certificates are read before it is verified."""
    if request.method not in ("GET", "HEAD"):
        require_method(request.method, provider)
    store = view.load_secrets()
    registry.get_provider(provider)
    if request.method in ("GET", "HEAD"):  # Mandrill and Unisender Go send one before they accept an address
        return _make_response(200, "ok")
    tenant = _find_tenant(view, request) if store.depends_on_tenant else None
    secrets = store.get(provider, tenant or "")
    incoming = IncomingWebhook(provider, request.headers, secrets=secrets, url=_public_url(view, request, provider))
    if request.method == "OPTIONS":
        return _make_response(200, "ok", **incoming.allowed_origin())
    incoming.add_body(_read_body(request, incoming))
    incoming.await_certificate(database.engine(project.alias()))
    webhook = incoming.open()
    if webhook.answer is not None:
        return HttpResponse(webhook.answer, content_type="application/json")
    recorded: list[Recorded] = []
    if webhook.events:
        with failures.count_failure(f"a webhook of {incoming.provider}"):
            recorded = _record(incoming.provider, _group(view, request, tenant, webhook.events))
    else:
        webhook.confirm()
    log_recorded(incoming.provider, recorded)
    return _make_response(200, "ok")


def _find_tenant(view: WebhookView, request: HttpRequest) -> str:
    tenant = view.tenant(request) if callable(view.tenant) else view.tenant
    if tenant is None:
        raise UnknownProviderError("there is no such tenant")
    return validation.configured_tenant("the tenant of webhook_view", tenant)


def _public_url(view: WebhookView, request: HttpRequest, provider: str) -> str | None:
    """Return the webhook's public URL if its provider signs it: the application's function may need a database."""
    if not registry.get_provider(provider).authentication.signs_url:
        return None
    base = view.url(request) if callable(view.url) else view.url
    url = public_url(provider, base, query=request.META.get("QUERY_STRING", ""))
    return url or str(request.build_absolute_uri())  # raises DisallowedHost


def _group(
    view: WebhookView, request: HttpRequest, tenant: str | None, events: Sequence[WebhookEvent]
) -> Mapping[str, Sequence[WebhookEvent]]:
    """Return the events of a webhook by tenant: one for the request, or that of `MAILGLASS_TENANT` for each event.

    The one for the request is *tenant*, whose secret has verified it, unless all tenants have the same secrets.
    """
    if view.tenant is not None:
        return {tenant or _find_tenant(view, request): events}
    by_tenant: dict[str, list[WebhookEvent]] = defaultdict(list)
    for event in events:
        by_tenant[signals.tenant_of(signals.as_tracking_event(event))].append(event)
    return by_tenant


def _read_body(request: HttpRequest, incoming: IncomingWebhook) -> bytes:
    """Read the body from the stream, which DATA_UPLOAD_MAX_MEMORY_SIZE does not limit."""
    content_length = request.META.get("CONTENT_LENGTH") or ""
    incoming.require_size(int(content_length[:20]) if content_length.isdecimal() else 0)
    try:
        return bytes(request.read(incoming.record.max_bytes + 1))
    except UnreadablePostError:
        raise ClientDisconnectedError from None


def _record(provider: str, by_tenant: Mapping[str, Sequence[WebhookEvent]]) -> list[Recorded]:
    """Record all events of a webhook in one transaction, each for its tenant.

    Raises:
        ConfigurationError: Autocommit is off: nothing would commit them after the response.
    """
    database.require_autocommit()
    return database.record(
        lambda connection: [
            result
            for tenant, events in by_tenant.items()
            for result in record_webhook(connection, provider=provider, events=events, tenant_id=tenant)
        ]
    )


def _make_response(status: int, text: str, **headers: str) -> HttpResponse:
    header_fields = {name.replace("_", "-").title(): value for name, value in headers.items()}
    response = HttpResponse(text, status=status, content_type="text/plain; charset=utf-8", headers=header_fields)
    # Django's log_response would log each refusal with its path, and mail a 5xx to ADMINS; we log once a minute.
    response._has_been_logged = True
    return response
