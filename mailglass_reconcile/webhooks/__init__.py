"""Providers' webhooks: read, verified, received."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a name is loaded when it is first used: see _MODULES
    from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
    from mailglass_reconcile.webhooks.registry import parse, verify

__all__ = ["InvalidWebhookError", "SignatureError", "parse", "verify"]

_MODULES = {
    "InvalidWebhookError": "mailglass_reconcile.errors",
    "SignatureError": "mailglass_reconcile.errors",
    "parse": "mailglass_reconcile.webhooks.registry",
    "verify": "mailglass_reconcile.webhooks.registry",
}

if not TYPE_CHECKING:  # a type checker would accept every misspelled name

    def __getattr__(name: str) -> Any:
        """Load a public name."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(_MODULES[name]), name)
        return globals()[name]
