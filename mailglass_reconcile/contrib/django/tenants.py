"""The setting `MAILGLASS_TENANT`: one tenant's id, or a function that says whose a message or an event is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, InvalidEventError
from mailglass_reconcile.record import validation


def fixed() -> str | None:
    """Return the tenant if the setting is a text without a dot, and None otherwise."""
    given = getattr(settings, "MAILGLASS_TENANT", None)
    return given if isinstance(given, str) and "." not in given else None


def function() -> Callable[[Any], str] | None:
    """Return the function that the setting is or names, and None if it is a text without a dot, or not set.

    Raises:
        ConfigurationError: It is neither.
    """
    given = getattr(settings, "MAILGLASS_TENANT", None)
    if given is None or fixed() is not None:
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
    asked = function()
    tenant = (fixed() or runtime.get_settings().tenant) if asked is None else asked(told)
    try:
        return validation.name("MAILGLASS_TENANT" if asked is None else "MAILGLASS_TENANT: what it returns", tenant)
    except InvalidEventError as error:
        raise ConfigurationError(str(error)) from None
