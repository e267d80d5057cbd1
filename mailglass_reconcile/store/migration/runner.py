"""Bringing a database to this version's schema, beside a Mailglass that goes on writing.

Alembic keeps the order of the revisions and the number of the last; each revision in `alembic/` looks first and
then takes its steps, which lock nothing that a writer would wait for.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from mailglass_reconcile.errors import DatabaseRefusedError, database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction, connect, transaction
from mailglass_reconcile.store.migration.steps import LOCK_PATIENCE_SECONDS, Steps

_VERSION_TABLE = "SELECT to_regclass(:version_table) IS NOT NULL"
_VERSION = "SELECT max(version_num) FROM {schema}.mailglass_reconcile_version"

_ANYTHING = """
SELECT to_regclass(:version_table) IS NOT NULL OR to_regclass(:open_orphans) IS NOT NULL
    OR to_regclass(:prune_index) IS NOT NULL
"""

_COMPLETE = """
SELECT to_regclass(:open_orphans) IS NOT NULL
   AND (SELECT count(*) = 3 FROM pg_trigger
         WHERE tgrelid = to_regclass(:events) AND tgenabled IN ('O', 'A')
           AND tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove',
                          'mailglass_events_no_truncate'))
   AND (SELECT count(*) = 2 FROM pg_index
         WHERE indexrelid IN (to_regclass(:prune_index), to_regclass(:deliveries_index)) AND indisvalid)
   AND to_regclass(:ids) IS NOT NULL
"""

_TRY_LOCK = """
SELECT pg_try_advisory_xact_lock(hashtext('mailglass_reconcile migrate'))
  FROM set_config('idle_in_transaction_session_timeout', '0', true)
"""


def migrate(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool = False) -> None:
    """Bring the database to this version's schema; on one that is there already, change nothing.

    Args:
        engine: Of a role that owns the tables, or may create them.
        settings: Whose schema is migrated.
        tell: Gets a line for each step.
        plan: Tell the steps and their SQL; change nothing.

    Raises:
        ConfigurationError: There is no such schema.
        SchemaOutdatedError: Mailglass's tables lack something; the message names it, nothing was changed.
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors(), _one_at_a_time(engine, settings):
        if is_current(engine, settings):
            tell(f"nothing to do: the database is at revision {schema.VERSION}")
            return
        _refuse_unknown(engine, settings)
        # The plan comes first even where nobody reads it: it looks whether all that is needed is there.
        _plan(engine, settings, tell if plan else lambda line: None)
        if not plan:
            with _alembic(engine, settings, Steps(engine, settings, tell)) as config:
                command.stamp(config, "base")
                command.upgrade(config, "head")


def is_current(engine: sa.Engine, settings: Settings) -> bool:
    """Whether nothing is left to do: the revision, the open set, the triggers and the index are there.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors(), connect(engine) as connection, transaction(connection, settings, read_only=True) as tx:
        return _version(tx) == schema.VERSION and bool(tx.execute(_COMPLETE, _names(tx)).scalar_one())


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None]) -> None:
    """Take out all that is ours; Mailglass's tables stay as they are, with every row.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors(), _one_at_a_time(engine, settings):
        with connect(engine) as connection, transaction(connection, settings, read_only=True) as tx:
            ours = tx.execute(_ANYTHING, _names(tx)).scalar_one()
        if not ours:
            tell("nothing to do: there is nothing of ours")
            return
        _refuse_unknown(engine, settings)
        steps = Steps(engine, settings, tell)
        with _alembic(engine, settings, steps) as config:
            command.stamp(config, "head")  # also where an interrupted migration has not come as far
            command.downgrade(config, "base")
            steps.run("drop the version table", f"DROP TABLE {{schema}}.{schema.VERSION_TABLE}")


def _names(tx: Transaction) -> dict[str, str]:
    return {
        "version_table": tx.name_of(schema.VERSION_TABLE),
        "open_orphans": tx.name_of("mailglass_open_orphans"),
        "prune_index": tx.name_of("mailglass_webhook_events_prune_idx"),
        "deliveries_index": tx.name_of("mailglass_deliveries_reconcile_idx"),
        "ids": tx.name_of("mailglass_open_orphan_ids"),
        "events": tx.name_of("mailglass_events"),
    }


def _version(tx: Transaction) -> str | None:
    exists = tx.execute(_VERSION_TABLE, _names(tx)).scalar_one()
    return tx.execute(_VERSION).scalar_one() if exists else None


def _refuse_unknown(engine: sa.Engine, settings: Settings) -> None:
    with connect(engine) as connection, transaction(connection, settings, read_only=True) as tx:
        version = _version(tx)
    if version is not None and version > schema.VERSION:
        raise DatabaseRefusedError(
            f"the database is at revision {version}, this version knows {schema.VERSION}:"
            " install the newer mailglass-reconcile; nothing was changed"
        )


@contextmanager
def _one_at_a_time(engine: sa.Engine, settings: Settings) -> Iterator[None]:
    """Let one migration of a database run at a time.

    The others ask again: one that waited in a statement would hold up a concurrent index.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    with connect(engine) as connection:
        while True:
            with transaction(connection, settings) as tx:
                if tx.execute(_TRY_LOCK).scalar_one():
                    yield
                    return
            if time.monotonic() > deadline:
                raise DatabaseRefusedError("another migration is running: try again when it is done")
            time.sleep(0.2)


def _plan(engine: sa.Engine, settings: Settings, tell: Callable[[str], None]) -> None:
    """Tell the steps and their SQL; Alembic writes down its own, too, and executes none of it."""
    own = io.StringIO()
    with _alembic(engine, settings, Steps(engine, settings, tell, plan=True), output=own) as config:
        command.upgrade(config, "base:head", sql=True)
    tell(f"note the revision in {schema.VERSION_TABLE}")
    tell(own.getvalue().strip())


@contextmanager
def _alembic(
    engine: sa.Engine, settings: Settings, steps: Steps, *, output: io.StringIO | None = None
) -> Iterator[Config]:
    """Hand out Alembic's configuration; its own connection is in no transaction, for an index would wait for that."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    with connect(engine).execution_options(isolation_level="AUTOCOMMIT") as connection:
        config.attributes.update(connection=connection, engine=engine, settings=settings, steps=steps)
        yield config


def _scripts() -> Path:
    """The revisions: inside the installed package, or at the top level of a checkout."""
    installed = Path(str(files("mailglass_reconcile"))) / "_alembic"
    return installed if installed.is_dir() else installed.parent.parent / "alembic"
