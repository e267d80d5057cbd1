"""The receiver of providers' webhooks: an ASGI application, and the function for any other framework.

Whoever receives a webhook imports this package, which lets the providers' wing, which knows no setting, load the
application's providers and count warnings.
"""

from mailglass_reconcile.providers import formats, registry


def _load_custom_providers() -> None:
    from mailglass_reconcile import runtime  # noqa: PLC0415 - it imports SQLAlchemy; only a custom provider needs it

    runtime.load_imports_once()


def _count_format_warning(provider: str, type_: str) -> None:
    from mailglass_reconcile import telemetry  # noqa: PLC0415 - it imports OpenTelemetry

    telemetry.count_format_warning(provider, type_)


registry.load_custom_providers = _load_custom_providers
formats.count_warning = _count_format_warning
