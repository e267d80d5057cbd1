"""What the settings of a Django project say of our database; importing it costs nothing, unlike the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.utils import ConnectionDoesNotExist
from django.utils.module_loading import import_string

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.settings import VARIABLES

DJANGO_ONLY = ("MAILGLASS_DATABASE_ALIAS", "MAILGLASS_DELIVERY", "MAILGLASS_TENANT_REQUIRED")
"""Our settings that are no environment variables."""
IGNORED = "MAILGLASS_DATABASE_URL"
"""The environment variable that `DATABASES` replaces."""


def load_values() -> dict[str, Any]:
    """Return the values of our settings that the project's settings have, by the field of `Settings`.

    An empty string is no value, as for an environment variable. A tenant that a function returns is no field's value.
    """
    values = {field: getattr(settings, name, "") for name, field in VARIABLES.items() if name != IGNORED}
    values["tenant"] = fixed_tenant() or ""
    return {field: value for field, value in values.items() if value != ""}


def alias() -> str:
    """Return the name of our database in `DATABASES`: `MAILGLASS_DATABASE_ALIAS`, or `default`."""
    return str(getattr(settings, "MAILGLASS_DATABASE_ALIAS", DEFAULT_DB_ALIAS))


def table(name: str) -> str:
    """Return one of our tables as a model's `db_table`, with its schema: Django puts a quote before it and after it."""
    try:
        schema = runtime.get_settings().database_schema
    except ConfigurationError:  # models are loaded before the check that names it, and before any query
        schema = "public"
    return f'{schema}"."{name}'


def fixed_tenant() -> str | None:
    """Return the tenant if the setting `MAILGLASS_TENANT` is a text without a dot, and None otherwise."""
    setting = getattr(settings, "MAILGLASS_TENANT", None)
    return setting if isinstance(setting, str) and setting and "." not in setting else None


def load_function(name: str) -> Callable[[Any], Any] | None:
    """Return the function that a setting is or names; None if it is not set, or empty.

    Raises:
        ConfigurationError: It is not a function, or cannot be imported.
    """
    setting = getattr(settings, name, None)
    if setting == "":
        return None
    try:
        loaded = import_string(setting) if isinstance(setting, str) else setting
    except ImportError:
        raise ConfigurationError(f"{name}: cannot import {setting}; a string with a dot must name a function") from None
    if loaded is not None and not callable(loaded):
        raise ConfigurationError(f"{name} must be a function or a function's dotted name")
    return loaded


def load_tenant_function() -> Callable[[Any], Any] | None:
    """Return the function of `MAILGLASS_TENANT`; None if that is not set, or a text without a dot."""
    return None if fixed_tenant() is not None else load_function("MAILGLASS_TENANT")


def savepoint() -> AbstractContextManager[None]:
    """Return a savepoint of the open transaction, if any, so that a project's function that fails leaves it usable."""
    is_open = connections[alias()].in_atomic_block
    return transaction.atomic(alias()) if is_open else nullcontext()


def connection_wrapper(name: str) -> Any:
    """Return Django's wrapper of a database, which must exist and be PostgreSQL; this does not connect."""
    try:
        wrapper = connections[name]
    except (ConnectionDoesNotExist, ImproperlyConfigured):
        raise ConfigurationError(
            f"DATABASES[{name!r}] is missing or unusable: MAILGLASS_DATABASE_ALIAS must name a PostgreSQL database"
        ) from None
    if wrapper.vendor != "postgresql":
        raise ConfigurationError(
            f"DATABASES[{name!r}] is {wrapper.display_name}: MAILGLASS_DATABASE_ALIAS must name a PostgreSQL database"
        )
    return wrapper
