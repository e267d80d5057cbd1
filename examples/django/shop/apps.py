"""The shop as Django loads it, in every process."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The shop, with its handlers."""

    name = "shop"

    def ready(self) -> None:
        """Register the handlers."""
        from shop import handlers  # noqa: F401, PLC0415 - they need the models
