"""Bringing a database to this version's schema, beside a Mailglass that goes on writing.

Nothing is locked that a writer would wait for: each step is a transaction of its own whose lock is asked for
with a short timeout and, where it is not to be had, asked for again; indexes are built concurrently; the open
set is filled in batches.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import open_orphans, schema
from mailglass_reconcile.database import connect, transaction
from mailglass_reconcile.errors import (
    CONTENTION_SQLSTATES,
    LOCK_NOT_AVAILABLE,
    ConfigurationError,
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

_SCHEMA = sa.text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")

# From the catalog itself: information_schema hides what the role has no right on.
_COLUMNS = sa.text("""
SELECT c.relname::text AS table_name, array_agg(a.attname::text) AS columns
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relname = ANY (CAST(:tables AS text[]))
 GROUP BY c.relname
""")

# Over these columns, and over every row whose last column is not NULL: a narrower one would let two rows pass.
_UNIQUE = sa.text("""
SELECT EXISTS (
  SELECT FROM pg_index AS i
   WHERE i.indrelid = to_regclass(:table) AND i.indisunique AND i.indisvalid
     AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = '(' || quote_ident(:last) || ' IS NOT NULL)')
     AND string_to_array(:columns, ' ') = ARRAY(
           SELECT a.attname::text FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
             JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE k.position <= i.indnkeyatts ORDER BY k.position))
""")

_VERSION_TABLE = sa.text("SELECT to_regclass('mailglass_reconcile_version') IS NOT NULL")
_VERSION = sa.text("SELECT max(version_num) FROM mailglass_reconcile_version")

_ANYTHING = sa.text("""
SELECT to_regclass('mailglass_reconcile_version') IS NOT NULL OR to_regclass('mailglass_open_orphans') IS NOT NULL
    OR to_regclass('mailglass_webhook_events_prune_idx') IS NOT NULL
""")

_COMPLETE = sa.text("""
SELECT to_regclass('mailglass_open_orphans') IS NOT NULL
   AND (SELECT count(*) = 3 FROM pg_trigger
         WHERE tgrelid = to_regclass('mailglass_events') AND tgenabled IN ('O', 'A')
           AND tgname IN ('mailglass_open_orphans_add', 'mailglass_open_orphans_remove',
                          'mailglass_events_no_truncate'))
   AND EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('mailglass_webhook_events_prune_idx')
                                      AND indisvalid)
""")

_INVALID = sa.text("SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid)")

_TRY_LOCK = sa.text("""
SELECT pg_try_advisory_xact_lock(hashtext('mailglass_reconcile migrate'))
  FROM set_config('idle_in_transaction_session_timeout', '0', true)
""")


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
            ConfigurationError: There is no such schema.
            SchemaOutdatedError: Some are there, and something that this package needs is missing.
        """
        schema_name = self._settings.database_schema
        with connect(self._engine) as connection, transaction(connection, self._settings, read_only=True):
            if not connection.execute(_SCHEMA, {"schema": schema_name}).scalar_one():
                raise ConfigurationError(
                    f"MAILGLASS_DATABASE_SCHEMA: there is no schema {schema_name} in this database:"
                    " correct the setting, or create the schema first"
                )
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
                f"a unique index on {table} ({', '.join(names.split())})"
                for table, names in unique.items()
                if found.get(table, set()).issuperset(names.split())
                and not connection.execute(
                    _UNIQUE, {"table": table, "columns": names, "last": names.split()[-1]}
                ).scalar_one()
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
                if sqlstate(error) not in {LOCK_NOT_AVAILABLE, *CONTENTION_SQLSTATES}:
                    raise
                if time.monotonic() > deadline:
                    raise DatabaseRefusedError(
                        f"could not {title}: a transaction of somebody else holds the table for more than"
                        f" {LOCK_PATIENCE_SECONDS} s; what was done so far stays, run this again later"
                    ) from None
                time.sleep(2 * LOCK_TIMEOUT_MS / 1000)

    def index_concurrently(self, name: str, table: str, *columns: str) -> None:
        """Build an index without blocking writers, unless it is there; an interrupted build's is built anew."""
        index = self._index(name, table, *columns)
        with connect(self._engine) as connection, transaction(connection, self._settings, read_only=True):
            broken = connection.execute(_INVALID, {"name": name}).scalar_one()
        if broken:
            self._outside_transaction(
                f"drop what an interrupted build left of the index {name}",
                sa.schema.DropIndex(index, if_exists=True),
            )
        self._outside_transaction(
            f"build the index {name} concurrently", sa.schema.CreateIndex(index, if_not_exists=True)
        )

    def drop_index_concurrently(self, name: str, table: str) -> None:
        """Drop an index without blocking writers."""
        self._outside_transaction(
            f"drop the index {name} concurrently",
            sa.schema.DropIndex(self._index(name, table), if_exists=True),
        )

    def fill_open_set(self) -> None:
        """Make the open set what the ledger says, within the maximum age, in batches."""
        self._tell(f"fill the open set from the ledger, {FILL_ORPHANS} orphans a transaction")
        if not self._plan:
            with connect(self._engine) as connection:
                added = open_orphans.add_missing(connection, self._settings, FILL_ORPHANS)
                settled = open_orphans.remove_settled(connection, self._settings, FILL_ORPHANS)
            self._tell(f"{added} open orphans were added, {settled} settled ones removed")

    def _index(self, name: str, table: str, *columns: str) -> sa.Index:
        metadata = sa.MetaData(schema=self._settings.database_schema)
        indexed = sa.Table(table, metadata, *(sa.Column(column, sa.Text) for column in columns or ("id",)))
        return sa.Index(name, *(indexed.c[column] for column in columns or ("id",)), postgresql_concurrently=True)

    def _outside_transaction(self, title: str, ddl: sa.schema.ExecutableDDLElement) -> None:
        self._tell(title)
        if self._plan:
            self._tell(str(ddl.compile(dialect=postgresql.dialect())).strip())  # type: ignore[no-untyped-call]
            return
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
        ConfigurationError: There is no such schema.
        SchemaOutdatedError: Mailglass's tables lack something; the message names it, nothing was changed.
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors(), _one_at_a_time(engine):
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
    with database_errors(), connect(engine) as connection, transaction(connection, settings, read_only=True):
        return _version(connection) == schema.VERSION and connection.execute(_COMPLETE).scalar_one()


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None]) -> None:
    """Take out all that is ours; Mailglass's tables stay as they are, with every row.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with database_errors(), _one_at_a_time(engine):
        with connect(engine) as connection, transaction(connection, settings, read_only=True):
            ours = connection.execute(_ANYTHING).scalar_one()
        if not ours:
            tell("nothing to do: there is nothing of ours")
            return
        _refuse_unknown(engine, settings)
        steps = Steps(engine, settings, tell)
        with _alembic(engine, settings, steps) as config:
            command.stamp(config, "head")  # also where an interrupted migration has not come as far
            command.downgrade(config, "base")
            steps.run("drop the version table", f"DROP TABLE {schema.VERSION_TABLE}")


def _version(connection: sa.Connection) -> str | None:
    exists = connection.execute(_VERSION_TABLE).scalar_one()
    return connection.execute(_VERSION).scalar_one() if exists else None


def _refuse_unknown(engine: sa.Engine, settings: Settings) -> None:
    with connect(engine) as connection, transaction(connection, settings, read_only=True):
        version = _version(connection)
    if version is not None and version > schema.VERSION:
        raise DatabaseRefusedError(
            f"the database is at revision {version}, this version knows {schema.VERSION}:"
            " install the newer mailglass-reconcile; nothing was changed"
        )


@contextmanager
def _one_at_a_time(engine: sa.Engine) -> Iterator[None]:
    """Let one migration of a database run at a time.

    The others ask again: one that waited in a statement would hold up a concurrent index.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    with connect(engine) as connection:
        while not connection.execute(_TRY_LOCK).scalar_one():
            connection.rollback()
            if time.monotonic() > deadline:
                raise DatabaseRefusedError("another migration is running: try again when it is done")
            time.sleep(0.2)
        yield


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
        config.attributes.update(connection=connection, settings=settings, steps=steps)
        yield config


def _scripts() -> Path:
    """The revisions: inside the installed package, or at the top level of a checkout."""
    installed = Path(str(files("mailglass_reconcile"))) / "_alembic"
    return installed if installed.is_dir() else installed.parent.parent / "alembic"
