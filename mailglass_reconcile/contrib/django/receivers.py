"""Anymail's signals: what was sent, and what a provider says of it, go into the ledger in the caller's transaction."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from anymail.signals import post_send, tracking
from django.conf import settings
from django.utils.module_loading import import_string

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib import anymail
from mailglass_reconcile.contrib.django import database, finishing
from mailglass_reconcile.errors import ConfigurationError, InvalidEventError, MailglassReconcileError
from mailglass_reconcile.record import checking
from mailglass_reconcile.record.sends import record_send
from mailglass_reconcile.record.webhooks import record_webhook

logger = logging.getLogger(__name__)


def connect() -> None:
    """Listen to Anymail; a second call changes nothing."""
    post_send.connect(record_what_was_sent, dispatch_uid="mailglass_reconcile.post_send")
    tracking.connect(record_what_happened, dispatch_uid="mailglass_reconcile.tracking")


def record_what_was_sent(*, message: Any, status: Any, esp_name: str, **_others: Any) -> None:
    """Record a send; never raise, because the mail is gone already."""
    try:
        sent = anymail.sent(message, status)
        if not sent:
            return
        tenant = tenant_of(message)
        with database.connection() as connection:
            finishing.finish(record_send(connection, provider=esp_name, sent=sent, tenant_id=tenant))
    except Exception as error:  # Anymail would raise it in the code that sent the message
        logger.error("a send by %s was not recorded: %s", esp_name, _reason(error))


def record_what_happened(*, event: Any, esp_name: str, **_others: Any) -> None:
    """Record an event; raise if the database fails, so that the provider sends it again.

    An event that cannot be recorded at all is skipped: it would fail at each retry, and the rest of its batch with it.
    """
    try:
        made = anymail.webhook_event(event, esp_name)
    except Exception as error:  # a payload that Anymail reads and we do not
        logger.error("an event of %s was skipped: %s", esp_name, _reason(error))
        return
    tenant = tenant_of(event)
    try:
        with database.connection() as connection:
            finishing.finish(record_webhook(connection, provider=esp_name, events=[made], tenant_id=tenant))
    except InvalidEventError as error:
        logger.error("an event of %s was skipped: %s", esp_name, error)


def _reason(error: Exception) -> str:
    """Return in a few words what went wrong and where; another's message may hold an address."""
    if isinstance(error, MailglassReconcileError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {where.filename}:{where.lineno}"


def fixed_tenant() -> str | None:
    """Return the tenant if the setting is a text without a dot, and None otherwise."""
    given = getattr(settings, "MAILGLASS_TENANT", None)
    return given if isinstance(given, str) and "." not in given else None


def tenant_function() -> Callable[[Any], str] | None:
    """Return the function that the setting is or names, and None if it is a text without a dot, or not set.

    Raises:
        ConfigurationError: It is neither.
    """
    given = getattr(settings, "MAILGLASS_TENANT", None)
    if given is None or fixed_tenant() is not None:
        return None
    try:
        found = import_string(given) if isinstance(given, str) else given
    except ImportError:
        raise ConfigurationError(
            f"MAILGLASS_TENANT: cannot import {given}, and a text with a dot must name a function"
        ) from None
    if not callable(found):
        raise ConfigurationError("MAILGLASS_TENANT must be a tenant's id, a function, or a function's dotted name")
    wanted: Callable[[Any], str] = found
    return wanted


def tenant_of(told: Any) -> str:
    """Return the tenant of a message or a tracking event.

    Raises:
        ConfigurationError: The setting cannot be used, or its function has not returned a tenant.
    """
    asked = tenant_function()
    tenant = (fixed_tenant() or runtime.get_settings().tenant) if asked is None else asked(told)
    try:
        return checking.name("MAILGLASS_TENANT" if asked is None else "MAILGLASS_TENANT: what it returns", tenant)
    except InvalidEventError as error:
        raise ConfigurationError(str(error)) from None
