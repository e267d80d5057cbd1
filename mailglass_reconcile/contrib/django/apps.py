"""The Django app: its name and label, its startup, and the database that our processes use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate, pre_migrate

from mailglass_reconcile import errors, runtime
from mailglass_reconcile.contrib.django import project
from mailglass_reconcile.settings import ENV_PREFIX

if TYPE_CHECKING:
    import sqlalchemy as sa

COMMAND = "manage.py mailglass"
"""The name of our command in a Django project."""
LOCAL_NAMES = {
    f"`{errors.COMMAND} ": f"`{COMMAND} ",
    "in MAILGLASS_IMPORTS": "imported in an AppConfig's ready()",
    "tenant of webhook_app": "tenant of webhook_view",
}
"""What messages say in place of a command of the console script, the setting that names modules, and the receiver."""


class MailglassReconcileConfig(AppConfig):
    """The app `mailglass_reconcile`."""

    name = "mailglass_reconcile.contrib.django"
    label = "mailglass_reconcile"
    verbose_name = "Mailglass"
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Configure our settings first: they name the schema of the models' tables."""
        self._configure(ENV_PREFIX)
        super().import_models()

    def ready(self) -> None:
        """Configure the database of `DATABASES`, without connecting, and register checks, receivers and migrations."""
        from mailglass_reconcile.contrib.django import checks  # noqa: F401, PLC0415 - it registers them

        self._configure(ENV_PREFIX)
        setting_changed.connect(self._configure, dispatch_uid="mailglass_reconcile.settings")
        self.connect()

    def connect(self) -> None:
        """Connect our receivers of signals; each loads its code, which takes half a second, on first use."""
        from anymail.signals import post_send, pre_send, tracking  # noqa: PLC0415 - it wants the settings

        for signal, sender, module, name in (
            (pre_send, None, "signals", "on_pre_send"),
            (post_send, None, "signals", "on_post_send"),
            (tracking, None, "signals", "on_tracking"),
            (pre_migrate, self, "migration_operations", "refuse_downgrade"),
            (post_migrate, self, "migration_operations", "install"),
        ):
            receiver = _load_on_first_use(module, name)
            signal.connect(receiver, sender, weak=False, dispatch_uid=f"mailglass_reconcile.{name}")

    def _configure(self, setting: str, **_kwargs: Any) -> None:
        """Configure our settings from Django's, at startup and when a test changes one."""
        if setting.startswith(ENV_PREFIX):
            alias = project.alias()
            local_names = {**LOCAL_NAMES, project.IGNORED: f"DATABASES[{alias!r}]"}
            runtime.configure_framework(
                partial(_make_engine, alias), local_names, _open_handlers_connection, **project.load_values()
            )
            if self.models_module is not None:
                self.models_module.follow_schema()


def _load_on_first_use(module: str, name: str) -> Callable[..., Any]:
    def receive(**arguments: Any) -> None:
        getattr(import_module(f"mailglass_reconcile.contrib.django.{module}"), name)(**arguments)

    return receive


def _make_engine(alias: str) -> sa.Engine:
    from mailglass_reconcile.contrib.django import database  # noqa: PLC0415 - loading it takes long

    return database.engine(alias)


def _open_handlers_connection() -> AbstractContextManager[Any]:
    from mailglass_reconcile.contrib.django import database  # noqa: PLC0415 - loading it takes long

    return database.open_handlers_connection()
