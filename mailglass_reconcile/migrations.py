"""Bringing a database to this version's schema, beside a Mailglass that goes on writing.

Nothing is locked that a writer would wait for: each step is a transaction of its own whose lock is asked for
with a short timeout and, where it is not to be had, asked for again; indexes are built concurrently; the open
set is filled in batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import open_orphans, schema
from mailglass_reconcile.database import connect, transaction
from mailglass_reconcile.errors import (
    LOCK_NOT_AVAILABLE,
    DatabaseRefusedError,
    SchemaOutdatedError,
    database_errors,
    sqlstate,
)
from mailglass_reconcile.settings import Settings

LOCK_TIMEOUT_MS = 100
"""Writers queue behind a lock that is waited for; Mailglass's own give up after 500 ms."""
LOCK_PATIENCE_SECONDS = 60
FILL_ORPHANS = 5_000

_COLUMNS = sa.text("""
SELECT table_name, array_agg(column_name::text) AS columns FROM information_schema.columns
 WHERE table_schema = :schema AND table_name = ANY (CAST(:tables AS text[])) GROUP BY table_name
""")

_UNIQUE = sa.text("""
SELECT EXISTS (
  SELECT FROM pg_index AS i
   WHERE i.indrelid = to_regclass(:table) AND i.indisunique AND i.indisvalid
     AND string_to_array(:columns, ' ') = ARRAY(
           SELECT a.attname::text FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
             JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.position))
""")

_VERSION_TABLE = sa.text("SELECT to_regclass('mailglass_reconcile_version') IS NOT NULL")
_VERSION = sa.text("SELECT max(version_num) FROM mailglass_reconcile_version")

_COMPLETE = sa.text("""
SELECT to_regclass('mailglass_open_orphans') IS NOT NULL
   AND (SELECT count(*) = 3 FROM pg_trigger
         WHERE tgrelid = to_regclass('mailglass_events') AND tgenabled IN ('O', 'A')
           AND tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove',
                          'mailglass_events_no_truncate'))
   AND EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('mailglass_webhook_events_prune_idx')
                                      AND indisvalid)
""")

_TRY_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(hashtext('mailglass_reconcile migrate'))")


class Steps:
    """The steps of a migration; in a plan they are told and not taken."""

    def __init__(
        self, engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool = False
    ) -> None:
        """Prepare steps on the tables that *settings* name; *tell* gets a line for each."""
        self._engine = engine
        self._settings = settings
        self._tell = tell
        self._plan = plan

    def require(self, *, columns: Mapping[str, str], unique: Mapping[str, str]) -> bool:
        """Look at Mailglass's tables before anything is changed, and return whether there are none at all.

        Raises:
            SchemaOutdatedError: Some are there, and something that this package needs is missing.
        """
        with connect(self._engine) as connection, transaction(connection, self._settings, read_only=True):
            schema_name = self._settings.database_schema
            rows = connection.execute(_COLUMNS, {"schema": schema_name, "tables": list(columns)})
            found = {row.table_name: set(row.columns) for row in rows}
            if not found:
                return True
            missing = [
                f"table {table}" if table not in found else f"column {table}.{column}"
                for table, names in columns.items()
                for column in (names.split() if table in found else [""])
                if table not in found or column not in found[table]
            ]
            missing += [
                f"unique index on {table} ({', '.join(names.split())})"
                for table, names in unique.items()
                if table in found and not connection.execute(_UNIQUE, {"table": table, "columns": names}).scalar_one()
            ]
        if missing:
            raise SchemaOutdatedError(
                f"nothing was changed: schema {schema_name} lacks {'; '.join(missing)}."
                " Run Mailglass's own migrations first"
            )
        return False

    def run(self, title: str, sql: str) -> None:
        """Take one step in one transaction, asking for its locks again until they are to be had.

        Raises:
            DatabaseRefusedError: They were not, for a minute.
        """
        self._tell(title)
        if self._plan:
            self._tell(sql.strip())
            return
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                with (
                    connect(self._engine) as connection,
                    transaction(connection, self._settings, lock_timeout_ms=LOCK_TIMEOUT_MS),
                ):
                    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
                return
            except DBAPIError as error:
                if sqlstate(error) != LOCK_NOT_AVAILABLE:
                    raise
                if time.monotonic() > deadline:
                    raise DatabaseRefusedError(
                        f"could not {title}: a transaction of somebody else holds mailglass_events; try again later"
                    ) from None
                time.sleep(2 * LOCK_TIMEOUT_MS / 1000)

    def index_concurrently(self, name: str, table: str, *columns: str) -> None:
        """Build an index without blocking writers; what an interrupted build left behind is dropped first."""
        index = self._index(name, table, *columns)
        self._tell(f"build the index {name} concurrently")
        if not self._plan:
            self._outside_transaction(sa.schema.DropIndex(index, if_exists=True))
            self._outside_transaction(sa.schema.CreateIndex(index))

    def drop_index_concurrently(self, name: str, table: str) -> None:
        """Drop an index without blocking writers."""
        self._tell(f"drop the index {name} concurrently")
        if not self._plan:
            self._outside_transaction(sa.schema.DropIndex(self._index(name, table), if_exists=True))

    def fill_open_set(self) -> None:
        """Put the ledger's open orphans within the maximum age into the open set, in batches."""
        self._tell("fill the open set from the ledger")
        if not self._plan:
            with connect(self._engine) as connection:
                added = open_orphans.add_missing(connection, self._settings, FILL_ORPHANS)
            self._tell(f"{added} orphans are open")

    def _index(self, name: str, table: str, *columns: str) -> sa.Index:
        metadata = sa.MetaData(schema=self._settings.database_schema)
        indexed = sa.Table(table, metadata, *(sa.Column(column, sa.Text) for column in columns or ("id",)))
        return sa.Index(name, *(indexed.c[column] for column in columns or ("id",)), postgresql_concurrently=True)

    def _outside_transaction(self, ddl: sa.schema.ExecutableDDLElement) -> None:
        with connect(self._engine).execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(ddl)


def migrate(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool = False) -> None:
    """Bring the database to this version's schema; on one that is there already, change nothing.

    Args:
        engine: Of a role that owns the tables, or may create them.
        settings: Whose schema is migrated.
        tell: Gets a line for each step.
        plan: Tell the steps and their SQL; change nothing.

    Raises:
        SchemaOutdatedError: Mailglass's tables lack something; the message names it, nothing was changed.
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors():
        if is_current(engine, settings):
            tell(f"nothing to do: the database is at revision {schema.VERSION}")
            return
        steps = Steps(engine, settings, tell, plan=plan)
        with _one_at_a_time(engine), _alembic(engine, settings, steps, keep=not plan) as config:
            command.stamp(config, "base")
            command.upgrade(config, "head")


def is_current(engine: sa.Engine, settings: Settings) -> bool:
    """Whether nothing is left to do: the revision, the open set, the triggers and the index are there.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors(), connect(engine) as connection, transaction(connection, settings, read_only=True):
        return _version(connection) == schema.VERSION and connection.execute(_COMPLETE).scalar_one()


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None]) -> None:
    """Take out all that is ours; Mailglass's tables stay as they are, with every row.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors():
        with connect(engine) as connection, transaction(connection, settings, read_only=True):
            ours = _version(connection) is not None
        if not ours:
            tell("nothing to do: there is nothing of ours")
            return
        steps = Steps(engine, settings, tell)
        with _one_at_a_time(engine), _alembic(engine, settings, steps) as config:
            command.downgrade(config, "base")
            steps.run("drop the version table", "DROP TABLE mailglass_reconcile_version")


def _version(connection: sa.Connection) -> str | None:
    exists = connection.execute(_VERSION_TABLE).scalar_one()
    return connection.execute(_VERSION).scalar_one() if exists else None


@contextmanager
def _one_at_a_time(engine: sa.Engine) -> Iterator[None]:
    """Let one migration run at a time; the others ask again, for a waiting one would hold up a concurrent index."""
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    with connect(engine) as connection:
        while not connection.execute(_TRY_LOCK).scalar_one():
            connection.rollback()
            if time.monotonic() > deadline:
                raise DatabaseRefusedError("another migration is running: try again when it is done")
            time.sleep(0.2)
        yield


@contextmanager
def _alembic(engine: sa.Engine, settings: Settings, steps: Steps, *, keep: bool = True) -> Iterator[Config]:
    """Hand out Alembic's configuration; what it notes of revisions is rolled back unless *keep*.

    Its own connection is in no transaction, for a concurrent index would wait for that.
    """
    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    with connect(engine) as connection:
        if keep:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        config.attributes.update(connection=connection, settings=settings, steps=steps)
        yield config


def _scripts() -> Path:
    """The revisions: inside the installed package, or at the top level of a checkout."""
    installed = Path(str(files("mailglass_reconcile"))) / "_alembic"
    return installed if installed.is_dir() else installed.parent.parent / "alembic"
