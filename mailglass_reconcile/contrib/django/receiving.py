"""The response of our views to a webhook: it is recorded on Django's connection, in a transaction of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, UnreadablePostError

from mailglass_reconcile.contrib.django import database, signals
from mailglass_reconcile.errors import UnknownProviderError
from mailglass_reconcile.providers import registry
from mailglass_reconcile.receiver.admission import ClientDisconnectedError, ForeignHostError
from mailglass_reconcile.receiver.log import log_recorded
from mailglass_reconcile.receiver.opening import IncomingWebhook, public_url, require_method
from mailglass_reconcile.receiver.refusals import refuse
from mailglass_reconcile.receiver.results import RequestResult, own_engine
from mailglass_reconcile.receiver.secret_store import SecretStore
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.record.after_commit import Recorded
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules.events import WebhookEvent

PROVIDER = "provider"
"""The name of the URL's parameter that has the provider's name."""

Tenant = str | Callable[[HttpRequest], str | None] | None
BaseUrl = str | Callable[[HttpRequest], str] | None


def respond(
    request: HttpRequest,
    unnamed: Sequence[str],
    parameters: Mapping[str, str],
    *,
    load_secrets: Callable[[], SecretStore],
    tenant: Tenant,
    url: BaseUrl,
) -> HttpResponse:
    """Respond to a request to a view of `webhook_view`, with the parameters of its path and the view's arguments."""
    provider = parameters.get(PROVIDER) or request.path.rstrip("/").rpartition("/")[2]
    result = RequestResult(provider, own_engine(), is_webhook=request.method == "POST")
    try:
        if not callable(tenant) and (unnamed or parameters.keys() - {PROVIDER}):  # one may be a tenant's
            raise UnknownProviderError("its URL has a parameter, and webhook_view no function tenant= that reads it")
        response = _respond(request, result, load_secrets, tenant, url)
    except Exception as error:
        # An application's functions read the Host, too.
        cause = ForeignHostError() if isinstance(error, DisallowedHost) else error
        status, text, headers = refuse(result, cause)
        return _make_response(status, text, **headers)
    result.count("received")
    return response


def _respond(
    request: HttpRequest, result: RequestResult, load_secrets: Callable[[], SecretStore], tenant: Tenant, url: BaseUrl
) -> HttpResponse:
    """Answer a webhook, cheapest checks first."""
    provider = result.provider
    if request.method not in ("GET", "HEAD"):
        require_method(request.method, provider)
    store = load_secrets()
    registry.get_provider(provider)
    if request.method in ("GET", "HEAD"):  # Mandrill and Unisender Go send one before they accept an address
        return _make_response(200, "ok")
    tenant_id = _find_tenant(tenant, request) if store.depends_on_tenant else None
    result.tenant_id = tenant_id or ""
    secrets = store.get(provider, result.tenant_id)
    incoming = IncomingWebhook(provider, request.headers, secrets=secrets, url=_public_url(url, request, provider))
    if request.method == "OPTIONS":
        return _make_response(200, "ok", **incoming.allowed_origin())
    incoming.add_body(_read_body(request, incoming))
    incoming.await_certificate()
    webhook = incoming.open()
    if webhook.answer is not None:
        return HttpResponse(webhook.answer, content_type="application/json")
    recorded: list[Recorded] = []
    if webhook.events:
        with failures.count_failure(f"a webhook of {incoming.provider}"):
            if tenant is None:
                by_tenant = _group_by_setting(webhook.events)
            else:
                by_tenant = {tenant_id or _find_tenant(tenant, request): webhook.events}
            recorded = _record(incoming.provider, by_tenant)
    else:
        webhook.confirm()
    log_recorded(incoming.provider, recorded)
    return _make_response(200, "ok")


def _find_tenant(tenant: Tenant, request: HttpRequest) -> str:
    name = tenant(request) if callable(tenant) else tenant
    if name is None:
        raise UnknownProviderError("there is no such tenant")
    return validation.configured_tenant("the tenant of webhook_view", name)


def _public_url(url: BaseUrl, request: HttpRequest, provider: str) -> str | None:
    """Return the webhook's public URL if its provider signs it: the application's function may need a database."""
    if not registry.get_provider(provider).authentication.signs_url:
        return None
    base = url(request) if callable(url) else url
    signed_url = public_url(provider, base, query=request.META.get("QUERY_STRING", ""))
    return signed_url or str(request.build_absolute_uri())  # raises DisallowedHost


def _group_by_setting(events: Sequence[WebhookEvent]) -> Mapping[str, Sequence[WebhookEvent]]:
    """Return the events of a webhook by tenant: that of `MAILGLASS_TENANT` for each event."""
    by_tenant: dict[str, list[WebhookEvent]] = defaultdict(list)
    for event in events:
        by_tenant[signals.tenant_of(signals.as_tracking_event(event))].append(event)
    return by_tenant


def _read_body(request: HttpRequest, incoming: IncomingWebhook) -> bytes:
    """Read the body from the stream, which DATA_UPLOAD_MAX_MEMORY_SIZE does not limit."""
    content_length = request.META.get("CONTENT_LENGTH") or ""
    incoming.require_size(int(content_length[:20]) if content_length.isdecimal() else 0)
    try:
        return bytes(request.read(incoming.definition.max_bytes + 1))
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
