"""Providers' webhooks: read, verified, received."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a name is loaded when it is first used: see _MODULES
    from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
    from mailglass_reconcile.webhooks.app import webhook_app
    from mailglass_reconcile.webhooks.readers import webhook_reader
    from mailglass_reconcile.webhooks.reading import parse, verify
    from mailglass_reconcile.webhooks.receiving import receive

__all__ = ["InvalidWebhookError", "SignatureError", "parse", "receive", "verify", "webhook_app", "webhook_reader"]

_MODULES = {
    "InvalidWebhookError": "mailglass_reconcile.errors",
    "SignatureError": "mailglass_reconcile.errors",
    "parse": "mailglass_reconcile.webhooks.reading",
    "receive": "mailglass_reconcile.webhooks.receiving",
    "verify": "mailglass_reconcile.webhooks.reading",
    "webhook_app": "mailglass_reconcile.webhooks.app",
    "webhook_reader": "mailglass_reconcile.webhooks.readers",
}

if not TYPE_CHECKING:  # a type checker would accept every misspelled name

    def __getattr__(name: str) -> Any:
        """Load a public name."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(_MODULES[name]), name)
        return globals()[name]
