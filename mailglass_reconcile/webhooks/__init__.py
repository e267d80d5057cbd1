"""Providers' webhooks: read, verified, received.

This module alone names the receiver, which is loaded on first use: reading and verifying need no database.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.webhooks.readers import webhook_reader
from mailglass_reconcile.webhooks.reading import parse, verify

if TYPE_CHECKING:
    from mailglass_reconcile.receiver.app import webhook_app
    from mailglass_reconcile.receiver.receiving import receive

__all__ = ["InvalidWebhookError", "SignatureError", "parse", "receive", "verify", "webhook_app", "webhook_reader"]

_OF_THE_RECEIVER = {"receive": "receiving", "webhook_app": "app"}


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_RECEIVER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mailglass_reconcile.receiver.{_OF_THE_RECEIVER[name]}"), name)


def __dir__() -> list[str]:
    return __all__
