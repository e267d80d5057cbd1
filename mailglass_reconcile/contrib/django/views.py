"""`webhook_view`, which makes views that receive webhooks; what they do is loaded with the first request."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError

if TYPE_CHECKING:
    from mailglass_reconcile.contrib.django.receiving import BaseUrl, Tenant
    from mailglass_reconcile.receiver.secret_store import SecretsArgument, SecretStore


def webhook_view(*, tenant: Tenant = None, secrets: SecretsArgument | None = None, url: BaseUrl = None) -> WebhookView:
    """Return a view that verifies, reads and records a provider's webhook, and responds with 200 after the commit.

    Mount it where the last part of the path is the provider's name, without a slash that Django would add:
    `re_path(r"^webhooks/(?P<provider>[^/]+)/?$", webhook_view(…))`. `docs/record-and-receive.md` lists the
    status codes.

    Args:
        tenant: The tenant, or a function of the request that returns it, or None (404). None is `MAILGLASS_TENANT`,
            which is asked for each event.
        secrets: As in `webhook_app`.
        url: The public URL of the webhooks without the provider's name, which Mandrill's signature needs behind a
            proxy, or a function of the request that returns it. None is `MAILGLASS_WEBHOOK_URL`, or the request's own.
    """
    return WebhookView(tenant, secrets, url)


class WebhookView:
    """A view of `webhook_view`, with its arguments."""

    def __init__(self, tenant: Tenant, secrets: SecretsArgument | None, url: BaseUrl) -> None:
        """Exempt the view from CSRF tokens and ATOMIC_REQUESTS: its transaction begins when a webhook is verified."""
        self.tenant, self.secrets, self.url = tenant, secrets, url
        self.csrf_exempt = True
        for alias in connections:
            transaction.non_atomic_requests(alias)(self)

    def __call__(self, request: HttpRequest, *unnamed: str, **parameters: str) -> HttpResponse:
        """Respond to a webhook, or to a provider's check of the address."""
        from mailglass_reconcile.contrib.django import receiving  # noqa: PLC0415 - loading it takes long

        return receiving.respond(
            request, unnamed, parameters, load_secrets=self.load_secrets, tenant=self.tenant, url=self.url
        )

    def load_secrets(self) -> SecretStore:
        """Return the secrets that webhooks are verified with.

        Raises:
            ConfigurationError: There is none, or one cannot be used.
        """
        if self.secrets is not None:
            return self._own_secrets
        from mailglass_reconcile.receiver import secret_store  # noqa: PLC0415 - loading it takes long

        return secret_store.from_setting(runtime.get_settings())

    @cached_property
    def _own_secrets(self) -> SecretStore:
        from mailglass_reconcile.receiver import secret_store  # noqa: PLC0415 - loading it takes long

        store = secret_store.from_argument(self.secrets, runtime.get_settings())
        if store.depends_on_tenant and self.tenant is None:
            raise ConfigurationError("secrets of tenants need the tenant= of webhook_view")
        return store
