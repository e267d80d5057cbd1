"""What Django loads: the app's name and label, its receivers, and the database that our processes use."""

from __future__ import annotations

from django.apps import AppConfig

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database

COMMAND = "manage.py mailglass"
"""How a Django project calls our command."""


class MailglassReconcileConfig(AppConfig):
    """The app `mailglass_reconcile`."""

    name = "mailglass_reconcile.contrib.django"
    label = "mailglass_reconcile"
    verbose_name = "Mailglass"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Take the database from `DATABASES`, without connecting; register checks, receivers and handlers' place."""
        from mailglass_reconcile.contrib.django import checks, middleware, receivers  # noqa: F401, PLC0415 - Anymail wants the settings

        tenant = receivers.fixed_tenant()
        values = {} if tenant is None else {"tenant": tenant}
        runtime.configure_framework(database.engine(database.alias()), COMMAND, **values)
        database.use_djangos_connection()
        receivers.connect()
        middleware.install()
