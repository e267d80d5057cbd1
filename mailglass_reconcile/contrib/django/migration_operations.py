"""Our own migration, run by Django's: with its locks, its checks and its connections, outside of any transaction."""

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
    """Bring the database of `MAILGLASS_DATABASE_ALIAS` to this version's schema; pass every other one by."""
    _run(runner.migrate, schema_editor)


def install(*, using: str, **_others: Any) -> None:
    """Do the same after every `migrate` of Django's, which cures what was dropped; but not after one to zero.

    A project may have switched our migrations off, as pytest's `--nomigrations` does.
    """
    connection = connections[using]
    has_migrations = not MigrationLoader(None).migrated_apps.isdisjoint({LABEL})
    if not has_migrations or any(app == LABEL for app, _ in MigrationRecorder(connection).applied_migrations()):
        migrate(None, connection.schema_editor())


def remove(_apps: Any, schema_editor: Any) -> None:
    """Remove our tables, indexes and triggers; Mailglass's tables stay as they are, with every row."""
    _run(_remove, schema_editor)


def _remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None]) -> None:
    for line in runner.losses(engine, settings):
        tell(line)
    runner.remove(engine, settings, tell)


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
