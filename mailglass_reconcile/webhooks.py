"""Parse, verify and receive providers' webhooks: the public names, on top of the providers and the receiver.

Parsing and verifying need no database, so the other names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import mailglass_reconcile.receiver  # noqa: F401 - it loads an application's own providers
from mailglass_reconcile.errors import InvalidWebhookError, SignatureError, UnknownProviderError
from mailglass_reconcile.providers.custom_providers import webhook_reader
from mailglass_reconcile.providers.parsing import parse, verify

if TYPE_CHECKING:
    from mailglass_reconcile.receiver.app import webhook_app
    from mailglass_reconcile.receiver.receiving import receive
    from mailglass_reconcile.receiver.refusals import Refusal, refusal

__all__ = [
    "InvalidWebhookError",
    "Refusal",
    "SignatureError",
    "UnknownProviderError",
    "parse",
    "receive",
    "refusal",
    "verify",
    "webhook_app",
    "webhook_reader",
]

_RECEIVER_MODULES = {"Refusal": "refusals", "receive": "receiving", "refusal": "refusals", "webhook_app": "app"}


def __getattr__(name: str) -> Any:
    if name not in _RECEIVER_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mailglass_reconcile.receiver.{_RECEIVER_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
