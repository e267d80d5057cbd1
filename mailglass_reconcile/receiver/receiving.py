"""`receive`: verify, parse and record a webhook in the caller's transaction."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from sqlalchemy.orm import Session

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import SignatureError, UnknownProviderError
from mailglass_reconcile.receiver import secret_store
from mailglass_reconcile.record.after_commit import Recorded
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.webhooks import registry, sns
from mailglass_reconcile.webhooks.provider import Provider
from mailglass_reconcile.webhooks.wire import WebhookRequest


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
    says, so that the provider sends the webhook again if that may help.

    Args:
        connection: A SQLAlchemy Connection or Session in a transaction, which you commit.
        provider: The provider's name in any known spelling, such as the last part of your URL.
        body: The request's body, byte for byte; more than 5 MB, or less at some providers, raise
            `InvalidWebhookError`.
        headers: The request's headers, in any case.
        secret: The provider's secret; None is `MAILGLASS_WEBHOOK_SECRETS`.
        url: The webhook's public address, exactly as entered at the provider, which only Mandrill's signature needs;
            None is `MAILGLASS_WEBHOOK_URL` and the provider's name.
        tenant_id: The tenant that the webhook belongs to; None is `MAILGLASS_TENANT`.

    Returns:
        A result for each event, in order; empty if the webhook has no event.

    Raises:
        SignatureError: It does not come from the provider.
        InvalidWebhookError: It cannot be parsed, or is too large.
        UnknownProviderError: The provider is not known, or there is no secret for it.
        ConfigurationError: A secret or another setting cannot be used.
        MailglassReconcileError: The database, or a server of the provider's, refused or cannot be reached.
    """
    settings = runtime.get_settings()
    secret_store.import_custom_provider(provider)
    record = registry.get_provider(provider)
    secrets = (
        [registry.validate_secret(provider, secret)]
        if secret is not None
        else secret_store.from_setting(settings).get(provider)
    )
    if not secrets:
        raise UnknownProviderError(secret_store.NO_SECRET)
    base = settings.webhook_url.get_secret_value() if settings.webhook_url else None
    address = url or (public_url(base, provider) if base else None)
    request = registry.make_request(body, headers, url=address)
    sns.certificates.wait(registry.find_certificate_source(record, request, secrets))
    verify_any(record, request, secrets)
    events = registry.read_events(record, request)
    if not events:
        confirm_subscription(record, request)
        return []
    with claim_token(record, request):
        return record_webhook(connection, tenant_id=tenant_id, provider=provider, events=events)


def verify_any(provider: Provider, request: WebhookRequest, secrets: Sequence[str]) -> None:
    """Verify that a request was signed with one of the *secrets*.

    Raises:
        SignatureError: It was signed with none of them.
        UnavailableError: Its certificate has not been fetched.
    """
    now = dt.datetime.now(dt.UTC)
    first_error = SignatureError("there is no secret for this provider")
    for number, secret in enumerate(secrets):
        try:
            registry.verify_request(provider, request, secret, now)
        except SignatureError as error:
            first_error = first_error if number else error
        else:
            return
    raise first_error


def confirm_subscription(provider: Provider, request: WebhookRequest) -> None:
    """Confirm the subscription that a verified request without events may ask for."""
    if provider.confirm:
        provider.confirm(request)


def answer_handshake(provider: Provider, request: WebhookRequest) -> str | None:
    """Return the JSON with which a verified request without events has to be answered, or None for an empty body."""
    code = provider.handshake(request) if provider.handshake else None
    return None if code is None else json.dumps({"validationResponse": code})


def claim_token(provider: Provider, request: WebhookRequest) -> AbstractContextManager[None]:
    """Claim the token of a verified request while it is recorded; only Mailgun's signature has one.

    Raises:
        SignatureError: The token belongs to another request.
    """
    return provider.claim(request) if provider.claim else nullcontext()


def public_url(base: str, path: str) -> str:
    """Return a webhook's public address.

    Args:
        base: The address below which the providers' webhooks are, or the whole address of this webhook.
        path: The webhook's path below *base*, which ends with the provider's name.
    """
    path = path.strip("/")
    name = path.rpartition("/")[2]
    return base if base.rstrip("/").endswith(f"/{name}") else f"{base.rstrip('/')}/{path}"
