"""Bringing a database to this version's schema, while Mailglass continues to write.

One script says what shall be in the schema, and one statement says what differs: only the steps of that are run.
Alembic records the revision, and runs what has to run once.
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
from mailglass_reconcile.store import revision, schema, script
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
from mailglass_reconcile.store.migration.lock import one_at_a_time
from mailglass_reconcile.store.migration.steps import Steps

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
    """Bring the database to this version's schema; on one that is there already, change nothing.

    The engine is of a role that owns the tables, or may create them; *tell* gets a line for each step. With *plan*, it
    tells the steps as SQL for psql, with everything else in comments, and changes nothing. With *guard_truncate*,
    TRUNCATE of the ledger is refused also on tables that Mailglass made.
    """
    say = (lambda line: tell(f"-- {line}")) if plan else tell
    with database_errors(), one_at_a_time(engine, settings), _patient(engine) as connection:
        connected = Connected(connection, settings)
        with connected.reading() as tx:
            say(_place(tx))
            version = tx.revision()
            has_ledger = preflight.require_place(tx, version)
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
        steps = Steps(connected, tell, plan=plan)

        def install() -> None:
            steps.install(comparison.differences, fill=version is None)

        if plan:
            tell(f"-- {_PLAN_HEADER}")
            if version is None:
                tell(_recorded(engine, settings, install))
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


def lacking(engine: sa.Engine, settings: Settings) -> list[str]:
    """Return a line for each thing that this version needs and the database lacks; none if nothing is left to do."""
    with Database(engine, settings).reading() as tx:
        if wrong := revision.outdated(tx.revision()):
            return [with_command_name(str(wrong))]
        found = compare(tx).differences
        return [
            with_command_name(f"{one.message}: {one.remedy(tx)}") for one in found if one.is_grave or one.is_curable
        ]


def losses(engine: sa.Engine, settings: Settings, *, tables: bool = False) -> list[str]:
    """Return a line each for what is pending, what `remove` takes away for good, and what it leaves."""
    with database_errors(), Database(engine, settings).reading() as tx:
        preflight.refuse_foreign(tx, compare(tx))
        if tables:
            _refuse_to_drop(tx)
        return [with_command_name(line) for line in removal.losses(tx, tables=tables)]


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, tables: bool = False) -> None:
    """Remove our tables, indexes and triggers; Mailglass's tables stay as they are, with every row.

    With *tables*, those of Mailglass's tables that `migrate` made are dropped too, with every row.
    """
    with database_errors(), one_at_a_time(engine, settings), _patient(engine) as connection:
        connected = Connected(connection, settings)
        with connected.reading() as tx:
            tell(_place(tx))
            preflight.refuse_foreign(tx, compare(tx))
            ours = removal.objects(tx)
            _refuse_newer(tx.revision())
            if tables:
                _refuse_to_drop(tx)
        if not (ours or tables):
            tell("nothing to do: there is nothing to remove")
            return
        steps = Steps(connected, tell)
        if ours:
            removal.remove(steps, ours)
            steps.run("drop the version table", f"DROP TABLE IF EXISTS {{schema}}.{schema.VERSION_TABLE}")
        if tables:
            steps.run("drop deliveries, events and raw webhooks", removal.DROP_TABLES)
        tell("done: our tables, indexes and triggers are removed")


def _refuse_to_drop(tx: Transaction) -> None:
    if schema.made_by_mailglass(tx):
        raise DatabaseRefusedError(
            f"nothing was changed: `migrate` did not make the tables of schema {tx.schema}, so it does not drop them."
            " Run it without --tables, which leaves them"
        )


def _place(tx: Transaction) -> str:
    """Name database and schema; JSON keeps a database's name with a line break on its line."""
    names = (tx.execute("SELECT current_database()::text").scalar_one(), tx.schema)
    return "database {}, schema {}".format(*(json.dumps(name, ensure_ascii=False) for name in names))


def _refuse_another(version: str | None, *, has_ledger: bool) -> None:
    """Refuse another revision than this version's, and our tables without Mailglass's."""
    if wrong := revision.outdated(version) if version else None:
        raise DatabaseRefusedError(f"{wrong}; nothing was changed")
    if version and not has_ledger:
        raise DatabaseRefusedError(f"nothing was changed: {schema.WITHOUT_LEDGER}")


def _refuse_newer(version: str | None) -> None:
    if version and version > schema.VERSION:
        raise DatabaseRefusedError(f"{revision.outdated(version)}; nothing was changed")


def _recorded(engine: sa.Engine, settings: Settings, install: Callable[[], None]) -> str:
    """Return the SQL by which Alembic records the revision, after *install* has told its own."""
    own = io.StringIO()
    with _alembic(engine, settings, install=install, output=own) as config:
        command.upgrade(config, "base:head", sql=True)
    return f"-- record the revision in {schema.VERSION_TABLE}\n{own.getvalue().strip()}"


@contextmanager
def environment(config: Config, tell: Callable[[str], None], *, plan: bool) -> Iterator[None]:
    """Give *config* what the revisions need, from the environment, unless `migrate` has done so."""
    if "install" in config.attributes:
        yield
        return
    settings = Settings()
    engine = create_engine(settings)
    with _patient(engine) as connection:
        connected = Connected(connection, settings)
        steps = Steps(connected, tell, plan=plan)
        with connected.reading() as tx:
            preflight.require_place(tx, tx.revision())
            comparison = compare(tx)
            preflight.refuse_foreign(tx, comparison)
            ours = removal.objects(tx)
        config.attributes["remove"] = lambda: removal.remove(steps, ours)
        with _given(config, engine, settings, lambda: steps.install(comparison.differences, fill=True)):
            yield


@contextmanager
def _alembic(
    engine: sa.Engine, settings: Settings, *, install: Callable[[], None], output: io.StringIO | None = None
) -> Iterator[Config]:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(script.folder()).replace("%", "%%"))
    with _given(config, engine, settings, install):
        yield config


@contextmanager
def _given(config: Config, engine: sa.Engine, settings: Settings, install: Callable[[], None]) -> Iterator[None]:
    """Give the revisions what they need.

    Alembic's own statements do not name Postgres's types and operators with their schema, so each of its transactions
    gets our scope first. It has ended before the first step, because an index would wait for it.
    """
    with _patient(engine) as connection:
        sa.event.listen(connection, "begin", _scope)

        def install_alone() -> None:
            connection.commit()
            install()

        config.attributes.update(connection=connection, settings=settings, install=install_alone)
        yield
        connection.commit()


@contextmanager
def _patient(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection that may be idle while another one works."""
    with connect(engine) as connection:
        _scope(connection)
        connection.exec_driver_sql("SET idle_session_timeout = 0")
        connection.commit()
        yield connection
        connection.rollback()
        _scope(connection)
        connection.exec_driver_sql("RESET idle_session_timeout")
        connection.commit()


def _scope(connection: sa.Connection) -> None:
    timeouts = {"lock_timeout": str(LOCK_TIMEOUT_MS), "statement_timeout": str(STATEMENT_TIMEOUT_MS)}
    connection.execute(sa.text(_SCOPE), timeouts)
