"""The Django app: `"mailglass_reconcile.contrib.django"` in `INSTALLED_APPS`; `docs/django.md` is its manual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mailglass_reconcile.contrib.django.database import connection

__all__ = ["connection"]


def __getattr__(name: str) -> Any:
    """Load `connection`, which takes long, on first use."""
    if name != "connection":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mailglass_reconcile.contrib.django import database  # noqa: PLC0415 - loading it takes long

    return database.connection
