"""Run our own migration from Django's migrations, with its own locks, checks and connections, outside a transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from django.core.management.base import CommandError
from django.db import DatabaseError, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder

from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database, project
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.migration import preflight, runner
from mailglass_reconcile.store.schema.revision import REVISIONS

LABEL = "mailglass_reconcile"
logger = logging.getLogger(__name__)


class Migrate(Operation):
    """Run a revision of ours in the database of `MAILGLASS_DATABASE_ALIAS`; do nothing in other databases.

    The first to run migrates to the newest revision, and makes functions, triggers and indexes. Backwards, the first
    revision removes our tables, indexes and triggers; Mailglass's tables keep every row.
    """

    reduces_to_sql = True

    def __init__(self, revision: str) -> None:
        """Run the revision with this id."""
        self.revision = revision

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change no model."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Migrate; for `sqlmigrate`, print what the database lacks."""
        alias, collect_sql = schema_editor.connection.alias, schema_editor.collect_sql
        tell = schema_editor.collected_sql.append if collect_sql else _log
        _run(alias, partial(runner.migrate, plan=collect_sql), tell)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Remove our objects for `zero`, which ends with the first revision; `sqlmigrate` prints none of it."""
        if self.revision == REVISIONS[0] and not schema_editor.collect_sql:
            _run(schema_editor.connection.alias, runner.remove, _log)

    def describe(self) -> str:
        """Return the line of `showmigrations --plan` and `sqlmigrate`."""
        return f"Migrate Mailglass's tables to revision {self.revision}"


def refuse_downgrade(*, using: str, plan: Sequence[tuple[Any, bool]] = (), **_kwargs: Any) -> None:
    """Before Django's first step, raise an error if it would go back to one of our revisions; `zero` may."""
    undone = [migration for migration, is_backwards in plan if is_backwards and migration.app_label == LABEL]
    if undone and using == project.alias() and not any(migration.initial for migration in undone):
        raise CommandError(
            f"{LABEL}: nothing was changed: there is no way back but `migrate {LABEL} zero`, which removes our tables."
            f" {preflight.NO_WAY_BACK}"
        )


def install(*, using: str, **_kwargs: Any) -> None:
    """After each of Django's migrations, restore dropped objects, once Django has applied all of our migrations.

    If a project has disabled our migrations, as pytest's `--nomigrations` does, this migrates.
    """
    names, applied = _load_names(using)
    if names <= applied:
        _run(using, runner.migrate, _log)


def _load_names(alias: str) -> tuple[set[str], set[str]]:
    """Return the names of our migrations that this version has, and of those that Django has applied."""
    keys = MigrationLoader(None).disk_migrations, MigrationRecorder(connections[alias]).applied_migrations()
    names, applied = ({name for app, name in migrations if app == LABEL} for migrations in keys)
    return names, applied


def _run(
    alias: str, step: Callable[[sa.Engine, Settings, Callable[[str], None]], None], tell: Callable[[str], None]
) -> None:
    if alias != project.alias():
        return
    try:
        step(database.engine(alias), runtime.get_settings(), tell)
    except MailglassReconcileError as error:
        try:
            names, applied = _load_names(alias)
        except DatabaseError:  # the error above says why
            names, applied = set(), set()
        others = ", ".join(sorted(applied - names)) if names else ""
        row = f" (django_migrations has {others}, which this version lacks)" if others else ""
        raise CommandError(f"mailglass_reconcile: {error}{row}") from None


def _log(line: str) -> None:
    """Log a line of `migrate`; each of Django's own runs ours, so INFO is kept for what is done."""
    levels = {"warning: ": logging.WARNING, "database ": logging.DEBUG, "nothing to do: ": logging.DEBUG}
    level = next((level for prefix, level in levels.items() if line.startswith(prefix)), logging.INFO)
    logger.log(level, "%s", line)
