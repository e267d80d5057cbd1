"""`receive`: verify, parse and record a webhook in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.providers import registry
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.receiver.opening import IncomingWebhook, public_url
from mailglass_reconcile.receiver.results import RequestResult, own_engine
from mailglass_reconcile.record import validation
from mailglass_reconcile.record.after_commit import Recorded
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.store import engines


def receive(
    connection: sa.Connection | Session,
    provider: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    secret: str | None = None,
    url: str | None = None,
    tenant_id: str | None = None,
) -> list[Recorded]:
    """Verify and parse a provider's webhook, and record its events, all in your transaction.

    After your commit, call `broadcast` and return 200. If anything raises, your commit included, return what `refusal`
    says.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        provider: The provider's name in any known spelling, such as the last part of your URL.
        body: The request's body, byte for byte.
        headers: The request's headers, in any case.
        secret: The provider's secret; None is `MAILGLASS_WEBHOOK_SECRETS`.
        url: The webhook's public URL, exactly as entered at the provider, which only Mandrill's signature needs;
            None is `MAILGLASS_WEBHOOK_URL` and the provider's name.
        tenant_id: The tenant that the webhook belongs to; None is `MAILGLASS_TENANT`.

    Returns:
        A result for each event, in order; empty if the webhook has no event.

    Raises:
        SignatureError: It does not come from the provider.
        InvalidWebhookError: It cannot be parsed, or is too large.
        UnknownProviderError: The provider is not known, or there is no secret for it.
        ConfigurationError: The tenant, a secret or another setting cannot be used.
        MailglassReconcileError: The database, or a server of the provider's, refused or cannot be reached.
    """
    settings = runtime.get_settings()
    tenant_id = validation.configured_tenant("tenant_id", settings.tenant if tenant_id is None else tenant_id)
    registry.load_provider(provider)
    if secret is None:
        secrets = secret_store.from_setting(settings).get(provider)
    else:
        secrets = [registry.validate_secret(provider, secret)]
    incoming = IncomingWebhook(provider, headers, secrets=secrets, url=url or public_url(provider))
    incoming.add_body(body)
    # Before the first statement, which would hold locks and a snapshot meanwhile.
    incoming.await_certificate(may_wait=not engines.engine_of(connection).dialect.is_async)
    webhook = incoming.open()
    recorded: list[Recorded] = []
    if webhook.events:
        recorded = record_webhook(connection, tenant_id=tenant_id, provider=provider, events=webhook.events)
    else:
        webhook.confirm()
    RequestResult(provider, own_engine()).count("received")
    return recorded
