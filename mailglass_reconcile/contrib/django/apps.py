"""The Django app: its name and label, its startup, and the database that our processes use."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate, pre_migrate

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database

COMMAND = "manage.py mailglass"
"""The name of our command in a Django project."""


class MailglassReconcileConfig(AppConfig):
    """The app `mailglass_reconcile`."""

    name = "mailglass_reconcile.contrib.django"
    label = "mailglass_reconcile"
    verbose_name = "Mailglass"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Configure the database of `DATABASES`, without connecting, and register checks, receivers and migrations."""
        from mailglass_reconcile.contrib.django import checks, migration_operations, receivers  # noqa: F401, PLC0415 - Anymail wants the settings

        self._configure("MAILGLASS_")
        setting_changed.connect(self._configure, dispatch_uid="mailglass_reconcile.settings")
        pre_migrate.connect(migration_operations.confirm_removal, self, dispatch_uid="mailglass_reconcile.remove")
        post_migrate.connect(migration_operations.install, self, dispatch_uid="mailglass_reconcile.migrate")
        database.use_djangos_connection()
        receivers.connect()

    def _configure(self, setting: str, **_kwargs: Any) -> None:
        """Configure our settings from Django's, at startup and when a test changes one."""
        from mailglass_reconcile.contrib.django import receivers  # noqa: PLC0415

        if setting.startswith("MAILGLASS_"):
            tenant = receivers.fixed_tenant()
            values = {} if tenant is None else {"tenant": tenant}
            runtime.configure_framework(database.engine(database.alias()), COMMAND, **values)
