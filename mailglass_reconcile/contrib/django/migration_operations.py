"""Run our own migration from Django's migrations, with its own locks, checks and connections, outside a transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from django.core.management.base import CommandError
from django.db import connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.migration import runner

LABEL = "mailglass_reconcile"

logger = logging.getLogger(__name__)


def migrate(_apps: Any, schema_editor: Any) -> None:
    """Migrate the database of `MAILGLASS_DATABASE_ALIAS` to this version's schema; do nothing for other databases."""
    _run(runner.migrate, schema_editor)


def install(*, using: str, **_kwargs: Any) -> None:
    """Migrate again after each of Django's migrations, which restores dropped objects, but not after one to zero.

    This also migrates if a project has disabled our migrations, as pytest's `--nomigrations` does.
    """
    connection = connections[using]
    has_migrations = not MigrationLoader(None).migrated_apps.isdisjoint({LABEL})
    if not has_migrations or any(app == LABEL for app, _ in MigrationRecorder(connection).applied_migrations()):
        migrate(None, connection.schema_editor())


def remove(_apps: Any, schema_editor: Any) -> None:
    """Remove our tables, indexes and triggers; Mailglass's tables keep every row."""
    _run(_remove, schema_editor)


def _remove(engine: sa.Engine, settings: Settings, log: Callable[[str], None]) -> None:
    for line in runner.describe_removal(engine, settings):
        log(line)
    runner.remove(engine, settings, log)


def _run(step: Callable[[sa.Engine, Settings, Callable[[str], None]], None], schema_editor: Any) -> None:
    name = schema_editor.connection.alias
    if name != database.alias():
        return
    try:
        step(database.engine(name), runtime.get_settings(), _log)
    except MailglassReconcileError as error:
        raise CommandError(f"mailglass_reconcile: {error}") from None


def _log(line: str) -> None:
    logger.log(logging.WARNING if line.startswith("warning: ") else logging.INFO, "%s", line)
