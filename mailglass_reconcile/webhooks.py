"""Parse, verify and receive providers' webhooks.

Parsing and verifying need no database: only this module imports other wings of the package, and only on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError, UnknownProviderError
from mailglass_reconcile.providers import formats, registry
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


def _load_custom_providers() -> None:
    from mailglass_reconcile import runtime  # noqa: PLC0415 - it imports SQLAlchemy; only a custom provider needs it

    runtime.load_imports()


def _count_format_warning(provider: str, type_: str) -> None:
    from mailglass_reconcile import telemetry  # noqa: PLC0415 - it imports OpenTelemetry

    telemetry.count_format_warning(provider, type_)


registry.load_custom_providers = _load_custom_providers
formats.count_warning = _count_format_warning
