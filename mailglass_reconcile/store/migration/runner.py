"""Migrate a database to this version's schema, while Mailglass continues to write, compare it, and remove our objects.

Alembic runs the revisions; then come the functions, triggers and indexes that differ (`environment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.errors import database_errors, with_local_names
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.migration import environment, preflight, removal
from mailglass_reconcile.store.migration.comparison import compare
from mailglass_reconcile.store.migration.quiet_alembic import Config, command
from mailglass_reconcile.store.migration.session import open_session
from mailglass_reconcile.store.schema import location, revision, script


def migrate(
    engine: sa.Engine,
    settings: Settings,
    tell: Callable[[str], None],
    *,
    plan: bool = False,
) -> None:
    """Migrate the database to this version's schema; change nothing if it is up to date, or newer.

    Args:
        engine: An engine of the role that owns the tables, or may create them.
        settings: The settings.
        tell: Gets a line for each step.
        plan: Print the steps as SQL for psql, with everything else in comments, and change nothing.
    """
    with _alembic(engine, settings, tell, plan=plan) as config:
        command.upgrade(config, "head", sql=plan)


@contextmanager
def _alembic(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool) -> Iterator[Config]:
    """Yield Alembic's configuration with a session that holds the lock, also for other threads of this process."""
    config = Config()
    config.set_main_option("script_location", str(script.find_folder()).replace("%", "%%"))
    say = (lambda line: tell(f"-- {line}")) if plan else tell
    with database_errors(), open_session(engine, settings, say) as session:
        config.attributes[environment.REQUEST] = environment.Request(session, tell)
        yield config


def find_missing_objects(engine: sa.Engine, settings: Settings) -> list[str]:
    """Return a line for each difference from this version's schema; none if the database is up to date, or newer."""
    with Database(engine, settings).reading_catalog() as tx:
        schemas = tx.load_schemas()
        if relocation := location.find_relocation(schemas, tx.schema):
            return [with_local_names(str(relocation))]
        comparison = compare(tx)
        version = comparison.version
        if comparison.strangers:
            return [f"{phrase}: drop or rename it" for phrase in comparison.strangers]
        if version and not any(schema.has_ledger for schema in schemas if schema.name == tx.schema):
            return [installed.WITHOUT_LEDGER]
        if revision.is_newer(version):
            return []
        if error := revision.find_mismatch(version):
            return [with_local_names(str(error))]
        return [
            with_local_names(f"{difference.message}: {difference.remedy(tx)}")
            for difference in comparison.differences
            if difference.is_grave or difference.is_curable
        ]


def load_revision(engine: sa.Engine, settings: Settings) -> str | None:
    """Return the revision of the database."""
    with Database(engine, settings).reading_catalog() as tx:
        return tx.revision()


def describe_removal(engine: sa.Engine, settings: Settings, *, tables: bool = False) -> list[str]:
    """Return lines about the pending work, the lost rows and the kept tables of a removal."""
    with database_errors(), Database(engine, settings).reading_catalog() as tx:
        preflight.refuse_foreign(tx, compare(tx))
        if tables:
            removal.refuse_to_drop(tx)
        return [with_local_names(line) for line in removal.describe_removal(tx, tables=tables)]


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, tables: bool = False) -> None:
    """Remove our tables, indexes and triggers; Mailglass's tables keep every row.

    With *tables*, deliveries, events and raw webhooks are dropped too, if `migrate` made them.
    """
    with database_errors(), open_session(engine, settings, tell) as session:
        removal.remove(session, tell, tables=tables)
