"""Providers' webhooks: read, verified, received."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a name is loaded when it is first used: see _MODULES
    from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
    from mailglass_reconcile.webhooks.app import webhook_app
    from mailglass_reconcile.webhooks.receiving import receive
    from mailglass_reconcile.webhooks.registry import parse, verify

__all__ = ["InvalidWebhookError", "SignatureError", "parse", "receive", "verify", "webhook_app"]

_MODULES = {
    "InvalidWebhookError": "mailglass_reconcile.errors",
    "SignatureError": "mailglass_reconcile.errors",
    "parse": "mailglass_reconcile.webhooks.registry",
    "receive": "mailglass_reconcile.webhooks.receiving",
    "verify": "mailglass_reconcile.webhooks.registry",
    "webhook_app": "mailglass_reconcile.webhooks.app",
}

if not TYPE_CHECKING:  # a type checker would accept every misspelled name

    def __getattr__(name: str) -> Any:
        """Load a public name."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(_MODULES[name]), name)
        return globals()[name]
