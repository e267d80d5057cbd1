"""Receivers of Anymail's signals: they record sends and tracking events in the caller's transaction."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

from anymail.signals import AnymailTrackingEvent
from django.conf import settings

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib import anymail
from mailglass_reconcile.contrib.django import database, message_values, project
from mailglass_reconcile.contrib.django.project import fixed_tenant
from mailglass_reconcile.errors import ConfigurationError, InvalidEventError, docs_url
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.record.sends import record_send
from mailglass_reconcile.record.webhooks import record_webhook
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.events import WebhookEvent
from mailglass_reconcile.rules.humanize import sanitize

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def on_pre_send(*, message: Any, **_kwargs: Any) -> None:
    """With `MAILGLASS_TENANT_REQUIRED`, refuse to send a message whose tenant cannot be found.

    Raises:
        ConfigurationError: There is none; Anymail has not called the provider.
    """
    if not getattr(settings, "MAILGLASS_TENANT_REQUIRED", False):
        return
    if not getattr(settings, "MAILGLASS_TENANT", None):
        raise ConfigurationError("the mail was not sent: MAILGLASS_TENANT_REQUIRED is set, and MAILGLASS_TENANT is not")
    try:
        _in_sync_thread(lambda: _find_tenant(message))
    except ConfigurationError as error:
        raise ConfigurationError(f"the mail was not sent: {error}") from None


def on_post_send(*, message: Any, status: Any, esp_name: str, **_kwargs: Any) -> None:
    """Record a send; never raise, because the mail has already been sent."""
    tenant, ids = "?", "?"

    def record() -> None:
        nonlocal tenant
        values = message_values.read(message)
        with failures.logged_by_caller(), failures.count_failure(f"a send by {sanitize(esp_name)}"):
            tenant = _find_tenant(message)
            database.record(
                lambda connection: record_send(connection, provider=esp_name, sent=sent, tenant_id=tenant, **values)
            )

    try:
        sent = anymail.sent(message, status)
        if not sent:
            return
        ids = ", ".join(dict.fromkeys(sanitize(str(result.message_id)) for result in sent))
        provider_rules.accept(esp_name)
        _in_sync_thread(record)
    except Exception as error:  # Anymail would raise it in the code that sent the message
        logger.error(
            "a send by %s was not recorded: %s (tenant %s, message ids %s); record it manually: %s",
            esp_name,
            failures.describe_error(error),
            sanitize(tenant),
            ids,
            docs_url("django.md#a-send-that-was-not-recorded"),
        )


def on_tracking(*, event: Any, esp_name: str, **_kwargs: Any) -> None:
    """Record an event that Anymail has read, in a transaction of its own unless one is open.

    It raises if the database fails or the tenant cannot be found, so that the provider sends the event again. An event
    that cannot be recorded at all is skipped: it would fail at each retry, and the rest of its batch with it.
    """
    try:
        webhook_event = anymail.webhook_event(event, esp_name)
    except Exception as error:  # a payload that Anymail reads and we do not
        logger.error("an event of %s was skipped: %s", esp_name, failures.describe_error(error))
        return
    provider_rules.accept(esp_name)

    def record() -> None:
        tenant = _find_tenant(event)
        database.record(
            lambda connection: record_webhook(connection, provider=esp_name, events=[webhook_event], tenant_id=tenant)
        )

    try:
        with failures.count_failure(f"a webhook of {sanitize(esp_name)}"):
            _in_sync_thread(record)
    except InvalidEventError as error:  # nothing was written
        logger.error("an event of %s was skipped: %s", esp_name, error)


def as_tracking_event(event: WebhookEvent) -> AnymailTrackingEvent:
    """Make the tracking event that an application's tenant function gets, with the fields of *event* and its tags."""
    return AnymailTrackingEvent(
        event_type=event.type,
        timestamp=event.occurred_at,
        event_id=event.provider_event_id,
        message_id=event.message_id,
        recipient=event.recipient,
        reject_reason=event.reject_reason,
        tags=event.metadata.get("tags", []),
        metadata={},
    )


def _find_tenant(source: Any) -> str:
    """Return the tenant of a message or an event; a query of the project's function that fails costs a savepoint."""
    with project.savepoint():
        return tenant_of(source)


def _in_sync_thread(action: Callable[[], Result]) -> Result:
    """Return the result of *action*; in an event loop, where Django allows no queries, run it in a thread of ours."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return action()
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        return action()

    def run_on_own_connection() -> Result:
        database.renew_connections()
        database.require_autocommit()
        return action()

    return _thread().submit(copy_context().run, run_on_own_connection).result()


@cache
def _thread() -> ThreadPoolExecutor:
    """Return the thread, which keeps its connection from one send to the next."""
    return ThreadPoolExecutor(1, thread_name_prefix="mailglass_reconcile")


os.register_at_fork(after_in_child=_thread.cache_clear)


def tenant_of(source: Any) -> str:
    """Return the tenant of a message or a tracking event.

    Raises:
        ConfigurationError: The setting cannot be used, or its function fails or returns no tenant.
    """
    function = project.load_tenant_function()
    if function is None:
        fixed = fixed_tenant()
        tenant = runtime.get_settings().tenant if fixed is None else fixed
        return validation.configured_tenant("MAILGLASS_TENANT", tenant)
    try:
        tenant = function(source)
    except Exception as error:  # its message may hold an address
        raise ConfigurationError(f"the function of MAILGLASS_TENANT fails: {failures.describe_error(error)}") from None
    return validation.configured_tenant("the value that MAILGLASS_TENANT returns", tenant)
