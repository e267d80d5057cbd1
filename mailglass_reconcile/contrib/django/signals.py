"""Our receivers of Django's and Anymail's signals; each loads its code, which takes half a second, on first use."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from anymail.signals import post_send, pre_send, tracking
from django.db.models.signals import post_migrate, pre_migrate


def _load_on_first_use(module: str, name: str) -> Callable[..., Any]:
    def receive(**arguments: Any) -> None:
        getattr(import_module(f"mailglass_reconcile.contrib.django.{module}"), name)(**arguments)

    return receive


def connect(app: Any) -> None:
    """Connect the receivers; a second call changes nothing."""
    for signal, sender, module, name in (
        (pre_send, None, "receivers", "on_pre_send"),
        (post_send, None, "receivers", "on_post_send"),
        (tracking, None, "receivers", "on_tracking"),
        (pre_migrate, app, "migration_operations", "confirm_removal"),
        (post_migrate, app, "migration_operations", "install"),
    ):
        signal.connect(_load_on_first_use(module, name), sender, weak=False, dispatch_uid=f"mailglass_reconcile.{name}")


def disconnect() -> None:
    """Receive Anymail's signals no more."""
    for signal, name in ((pre_send, "on_pre_send"), (post_send, "on_post_send"), (tracking, "on_tracking")):
        signal.disconnect(dispatch_uid=f"mailglass_reconcile.{name}")
