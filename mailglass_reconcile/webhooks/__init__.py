"""Providers' webhooks: read, verified, received.

This module alone knows the rest of the package, and loads it on first use: reading and verifying need no database.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mailglass_reconcile.errors import InvalidWebhookError, SignatureError
from mailglass_reconcile.webhooks import formats, registry
from mailglass_reconcile.webhooks.custom_providers import webhook_reader
from mailglass_reconcile.webhooks.parsing import parse, verify

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


def _load_readers() -> None:
    from mailglass_reconcile import runtime  # noqa: PLC0415 - it brings SQLAlchemy; only an own reader needs it

    runtime.load_imports()


def _count_format_warning(provider: str, type_: str) -> None:
    from mailglass_reconcile import telemetry  # noqa: PLC0415 - it brings OpenTelemetry

    telemetry.count_format_warning(provider, type_)


registry.load_readers = _load_readers
formats.count_elsewhere = _count_format_warning
