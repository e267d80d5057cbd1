"""Migrate a database to this version's schema, while Mailglass continues to write.

One script has the steps of the schema, and one statement finds the differences: only their steps run. Alembic records
the revision.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from mailglass_reconcile.errors import DatabaseRefusedError, database_errors, with_command_name
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import location, revision, schema, script
from mailglass_reconcile.store.comparison import Comparison, compare
from mailglass_reconcile.store.database import (
    LOCK_TIMEOUT_MS,
    STATEMENT_TIMEOUT_MS,
    Connected,
    Database,
    Transaction,
)
from mailglass_reconcile.store.engines import connect, create_engine
from mailglass_reconcile.store.migration import preflight, removal
from mailglass_reconcile.store.migration.lock import migration_lock
from mailglass_reconcile.store.migration.steps import StepRunner

_PLAN_HEADER = "run this with `psql -v ON_ERROR_STOP=1`; if it stops, run --plan again: finished steps are left out"

_NONE_FOUND = (
    "creating Mailglass's tables (none found); if Mailglass itself will use this database, run its migrations first"
)

_SCOPE = """
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
       pg_catalog.set_config('lock_timeout', :lock_timeout, true),
       pg_catalog.set_config('statement_timeout', :statement_timeout, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true)
"""


def migrate(
    engine: sa.Engine,
    settings: Settings,
    tell: Callable[[str], None],
    *,
    plan: bool = False,
    guard_truncate: bool = False,
) -> None:
    """Migrate the database to this version's schema; change nothing if it is up to date.

    Args:
        engine: An engine of the role that owns the tables, or may create them.
        settings: The settings.
        tell: Gets a line for each step.
        plan: Print the steps as SQL for psql, with everything else in comments, and change nothing.
        guard_truncate: Refuse TRUNCATE of the ledger also on tables that Mailglass made.
    """
    say = (lambda line: tell(f"-- {line}")) if plan else tell
    with database_errors(), migration_lock(engine, settings), _connect_without_timeout(engine) as connection:
        connected = Connected(connection, settings)
        with connected.reading() as tx:
            say(_describe_location(tx))
            version = tx.revision()
            has_ledger = preflight.require_usable_schema(tx, version)
            _refuse_another(version, has_ledger=has_ledger)
            comparison = compare(tx, guard=guard_truncate)
            if not (version and _is_done(comparison)):
                preflight.refuse_foreign(tx, comparison)
            preflight.refuse_incurable(tx, comparison)
        if version and _is_done(comparison):
            owned = f", owned by {comparison.owner}" if comparison.owner else ""
            say(f"nothing to do: the database is at revision {version}{owned}")
            return
        if not has_ledger:
            say(_NONE_FOUND)
        steps = StepRunner(connected, tell, plan=plan)

        def install() -> None:
            steps.install(comparison.differences, fill=version is None)

        if plan:
            tell(f"-- {_PLAN_HEADER}")
            if version is None:
                tell(_format_alembic_sql(engine, settings, install))
            else:
                install()
            tell(f"-- done: revision {schema.VERSION}")
            return
        if version is None:
            with _alembic(engine, settings, install=install) as config:
                command.upgrade(config, "head")
        else:
            install()
        tell(f"done: revision {schema.VERSION}")


def _is_done(comparison: Comparison) -> bool:
    return not any(difference.is_curable for difference in comparison.differences)


def find_missing_objects(engine: sa.Engine, settings: Settings) -> list[str]:
    """Return a line for each difference from this version's schema; none if the database is up to date."""
    with Database(engine, settings).reading() as tx:
        if error := location.find_moved(tx.load_schemas(), tx.schema) or revision.find_mismatch(tx.revision()):
            return [with_command_name(str(error))]
        return [
            with_command_name(f"{difference.message}: {difference.remedy(tx)}")
            for difference in compare(tx).differences
            if difference.is_grave or difference.is_curable
        ]


def describe_removal(engine: sa.Engine, settings: Settings, *, tables: bool = False) -> list[str]:
    """Return lines about the pending work, the lost rows and the kept tables of a removal."""
    with database_errors(), Database(engine, settings).reading() as tx:
        preflight.refuse_foreign(tx, compare(tx))
        if tables:
            _refuse_to_drop(tx)
        return [with_command_name(line) for line in removal.describe_removal(tx, tables=tables)]


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, tables: bool = False) -> None:
    """Remove our tables, indexes and triggers; Mailglass's tables keep every row.

    With *tables*, deliveries, events and raw webhooks are dropped too, if `migrate` made them.
    """
    with database_errors(), migration_lock(engine, settings), _connect_without_timeout(engine) as connection:
        connected = Connected(connection, settings)
        with connected.reading() as tx:
            tell(_describe_location(tx))
            preflight.refuse_foreign(tx, compare(tx))
            objects = removal.find_objects(tx)
            _refuse_newer(tx.revision())
            if tables:
                _refuse_to_drop(tx)
        if not (objects or tables):
            tell("nothing to do: there is nothing to remove")
            return
        steps = StepRunner(connected, tell)
        if objects:
            removal.remove(steps, objects)
            steps.run("drop the version table", f"DROP TABLE IF EXISTS {{schema}}.{schema.VERSION_TABLE}")
        if tables:
            steps.run("drop deliveries, events and raw webhooks", removal.DROP_TABLES)
        tell("done: our tables, indexes and triggers are removed")


def _refuse_to_drop(tx: Transaction) -> None:
    if schema.is_made_by_mailglass(tx):
        raise DatabaseRefusedError(
            f"nothing was changed: `migrate` did not make the tables of schema {tx.schema}, so it does not drop them."
            " Run it without --tables, which leaves them"
        )


def _describe_location(tx: Transaction) -> str:
    """Return the names of database and schema, as JSON, so that a name with a line break stays on its line."""
    names = (tx.execute("SELECT current_database()::text").scalar_one(), tx.schema)
    return "database {}, schema {}".format(*(json.dumps(name, ensure_ascii=False) for name in names))


def _refuse_another(version: str | None, *, has_ledger: bool) -> None:
    """Raise an error if the database is at another revision, or has our tables without Mailglass's."""
    if error := revision.find_mismatch(version) if version else None:
        raise DatabaseRefusedError(f"{error}; nothing was changed")
    if version and not has_ledger:
        raise DatabaseRefusedError(f"nothing was changed: {schema.WITHOUT_LEDGER}")


def _refuse_newer(version: str | None) -> None:
    if version and version > schema.VERSION:
        raise DatabaseRefusedError(f"{revision.find_mismatch(version)}; nothing was changed")


def _format_alembic_sql(engine: sa.Engine, settings: Settings, install: Callable[[], None]) -> str:
    """Run *install*, and return the SQL with which Alembic records the revision."""
    sql = io.StringIO()
    with _alembic(engine, settings, install=install, output=sql) as config:
        command.upgrade(config, "base:head", sql=True)
    return f"-- record the revision in {schema.VERSION_TABLE}\n{sql.getvalue().strip()}"


@contextmanager
def prepare_config(config: Config, tell: Callable[[str], None], *, plan: bool) -> Iterator[None]:
    """Set the attributes of *config* that the revisions need, from the environment, unless `migrate` has set them."""
    if "install" in config.attributes:
        yield
        return
    settings = Settings()
    engine = create_engine(settings)
    with _connect_without_timeout(engine) as connection:
        connected = Connected(connection, settings)
        steps = StepRunner(connected, tell, plan=plan)
        with connected.reading() as tx:
            preflight.require_usable_schema(tx, tx.revision())
            comparison = compare(tx)
            preflight.refuse_foreign(tx, comparison)
            objects = removal.find_objects(tx)
        config.attributes["remove"] = lambda: removal.remove(steps, objects)
        with _with_attributes(config, engine, settings, lambda: steps.install(comparison.differences, fill=True)):
            yield


@contextmanager
def _alembic(
    engine: sa.Engine, settings: Settings, *, install: Callable[[], None], output: io.StringIO | None = None
) -> Iterator[Config]:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(script.find_folder()).replace("%", "%%"))
    with _with_attributes(config, engine, settings, install):
        yield config


@contextmanager
def _with_attributes(
    config: Config, engine: sa.Engine, settings: Settings, install: Callable[[], None]
) -> Iterator[None]:
    """Set the attributes of *config* that the revisions need.

    Alembic's own statements do not qualify Postgres's types and operators, so each of its transactions gets our scope
    first. It is committed before the first step, because an index build would wait for it.
    """
    with _connect_without_timeout(engine) as connection:
        sa.event.listen(connection, "begin", _set_scope)

        def install_alone() -> None:
            connection.commit()
            install()

        config.attributes.update(connection=connection, settings=settings, install=install_alone)
        yield
        connection.commit()


@contextmanager
def _connect_without_timeout(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection without an idle timeout, because it is idle while another one works."""
    with connect(engine) as connection:
        _set_scope(connection)
        connection.exec_driver_sql("SET idle_session_timeout = 0")
        connection.commit()
        yield connection
        connection.rollback()
        _set_scope(connection)
        connection.exec_driver_sql("RESET idle_session_timeout")
        connection.commit()


def _set_scope(connection: sa.Connection) -> None:
    timeouts = {"lock_timeout": str(LOCK_TIMEOUT_MS), "statement_timeout": str(STATEMENT_TIMEOUT_MS)}
    connection.execute(sa.text(_SCOPE), timeouts)
