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
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.revision import REVISIONS

LABEL = "mailglass_reconcile"
logger = logging.getLogger(__name__)


class Migrate(Operation):
    """Run a revision of ours in the database of `MAILGLASS_DATABASE_ALIAS`; do nothing in other databases.

    After the last one, functions, triggers and indexes are made, too. Backwards, the first revision removes our tables,
    indexes and triggers; Mailglass's tables keep every row.
    """

    reduces_to_sql = True

    def __init__(self, revision: str) -> None:
        """Run the revision with this id."""
        self.revision = revision

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change no model."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Migrate up to the revision; for `sqlmigrate`, print what the database lacks up to it."""
        alias, collect_sql = schema_editor.connection.alias, schema_editor.collect_sql
        tell = schema_editor.collected_sql.append if collect_sql else _log
        _run(alias, partial(runner.migrate, target=self.revision, plan=collect_sql), tell)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Go back to the revision before; `sqlmigrate` prints none of it."""
        number = REVISIONS.index(self.revision)
        step = partial(runner.downgrade, target=REVISIONS[number - 1]) if number else runner.remove
        if not schema_editor.collect_sql:
            _run(schema_editor.connection.alias, step, _log)

    def describe(self) -> str:
        """Return the line of `showmigrations --plan` and `sqlmigrate`."""
        return f"Migrate Mailglass's tables to revision {self.revision}"


def install(*, using: str, plan: Sequence[tuple[Any, bool]] = (), **_kwargs: Any) -> None:
    """After each of Django's migrations, restore dropped objects, up to the last revision that Django has applied.

    After one of ours was taken back, this does nothing. If a project has disabled our migrations, as pytest's
    `--nomigrations` does, this migrates to the last revision.
    """
    if any(is_backwards and migration.app_label == LABEL for migration, is_backwards in plan):
        return
    names, applied = _load_names(using)
    targets = [name.partition("_")[0] for name in sorted(names & applied)[-1:]] if names else ["head"]
    for target in targets:
        _run(using, partial(runner.migrate, target=target), _log)


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
    logger.log(logging.WARNING if line.startswith("warning: ") else logging.INFO, "%s", line)
