"""Bringing a database to this version's schema, while Mailglass continues to write.

Alembic keeps the order of the revisions and the number of the last; each revision in `alembic/` looks first and
then takes its steps, which lock nothing that a writer would wait for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from mailglass_reconcile.errors import DatabaseRefusedError, SchemaOutdatedError, database_errors, hint
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import catalog, revision, schema, script, wrong_schema
from mailglass_reconcile.store.catalog import Fault
from mailglass_reconcile.store.database import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Database, Transaction
from mailglass_reconcile.store.engines import connect, create_engine
from mailglass_reconcile.store.migration import removal, state
from mailglass_reconcile.store.migration.lock import one_at_a_time
from mailglass_reconcile.store.migration.steps import Steps

_PLAN_HEADER = "run this with `psql -v ON_ERROR_STOP=1`; if it stops, run --plan again: finished steps are left out"

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
    with database_errors(), one_at_a_time(engine, settings):
        say(_place(engine, settings))
        with Database(engine, settings).reading() as tx:
            guard = guard_truncate or not schema.made_by_mailglass(tx)
            is_current = state.version(tx) == schema.VERSION
            faults = state.faults(tx, guard=guard) if is_current else []
            done, owner = is_current and all(one.is_theirs for one in faults), state.owner(tx)
            if not (done and owner):
                state.refuse_others(tx)
            stopped = wrong_schema.without_ledger(tx, wrong_schema.ledgers(tx))
            theirs = [f"{one.message}: {one.remedy(tx)}" for one in faults if one.is_theirs and one.grave]
        if stopped:
            raise DatabaseRefusedError(f"nothing was changed: {stopped}")
        if done:
            owned = f", owned by {owner}" if owner else ""
            if theirs:
                raise SchemaOutdatedError(f"nothing was changed, because the table is not ours: {'; '.join(theirs)}")
            say(f"nothing to do: the database is at revision {schema.VERSION}{owned}")
            return
        steps = Steps(engine, settings, tell, plan=plan)
        _refuse_another(engine, settings)
        _repair(steps, faults)
        # The plan comes first even if it is not read: it checks whether all that is needed is there.
        _plan(engine, settings, tell if plan else lambda line: None, guard=guard)
        if not plan:
            with _alembic(engine, settings, steps, guard=guard) as config:
                command.stamp(config, "base")
                command.upgrade(config, "head")
            tell(f"done: revision {schema.VERSION}")


def _repair(steps: Steps, faults: Sequence[Fault]) -> None:
    """Make what was dropped from tables that are there, and what the revision does not look for."""
    for one in faults:
        if one.kind == "indexes" and not one.is_theirs:
            steps.create_index(one.name)
        elif one.name == schema.IMMUTABLE:
            names = ("mailglass_raise_immutability", schema.IMMUTABLE)
            steps.run(
                "refuse UPDATE and DELETE of mailglass_events again",
                "\n\n".join(step.sql for step in script.steps() if step.name in names),
            )


def lacking(engine: sa.Engine, settings: Settings) -> list[str]:
    """Return a line for each thing that this version needs and the database lacks; none if nothing is left to do."""
    with Database(engine, settings).reading() as tx:
        stopped = wrong_schema.without_ledger(tx, wrong_schema.ledgers(tx))
        if stopped:
            raise DatabaseRefusedError(str(stopped))
        if wrong := revision.outdated(state.version(tx)):
            return [hint(str(wrong))]
        found = catalog.faults(tx)
        return [hint(f"{one.message}: {one.remedy(tx)}") for one in found if one.grave or not one.is_theirs]


def losses(engine: sa.Engine, settings: Settings, *, tables: bool = False) -> list[str]:
    """Return a line each for what is pending, what `remove` takes away for good, and what it leaves."""
    with database_errors(), Database(engine, settings).reading() as tx:
        state.refuse_others(tx)
        if tables:
            _refuse_to_drop(tx)
        return [hint(line) for line in removal.losses(tx, tables=tables)]


def remove(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, tables: bool = False) -> None:
    """Remove our tables, indexes and triggers; Mailglass's tables stay as they are, with every row.

    With *tables*, those of Mailglass's tables that `migrate` made are dropped too, with every row.
    """
    with database_errors(), one_at_a_time(engine, settings):
        tell(_place(engine, settings))
        with Database(engine, settings).reading() as tx:
            state.refuse_others(tx)
            ours = state.has_anything(tx)
            if tables:
                _refuse_to_drop(tx)
        if not (ours or tables):
            tell("nothing to do: there is nothing to remove")
            return
        _refuse_another(engine, settings, to_remove=True)
        steps = Steps(engine, settings, tell)
        if ours:
            with _alembic(engine, settings, steps, guard=False) as config:
                # An interrupted migration has not recorded it, and one of an earlier checkout has recorded another.
                command.stamp(config, "head", purge=True)
                command.downgrade(config, "base")
                steps.run("drop the version table", f"DROP TABLE {{schema}}.{schema.VERSION_TABLE}")
        if tables:
            steps.run("drop deliveries, events and raw webhooks", removal.DROP_TABLES)
        tell("done: our tables, indexes and triggers are removed")


def _refuse_to_drop(tx: Transaction) -> None:
    if schema.made_by_mailglass(tx):
        raise DatabaseRefusedError(
            f"nothing was changed: `migrate` did not make the tables of schema {tx.schema}, so it does not drop them."
            " Run it without --tables, which leaves them"
        )


@contextmanager
def environment(config: Config, tell: Callable[[str], None], *, plan: bool) -> Iterator[None]:
    """Give *config* what the revisions need, from the environment, unless `migrate` or `remove` has done so."""
    if "steps" in config.attributes:
        yield
        return
    settings = Settings()
    engine = create_engine(settings)
    with Database(engine, settings).reading() as tx:
        state.refuse_others(tx)
        guard = not schema.made_by_mailglass(tx)
    with _handed_over(config, engine, settings, Steps(engine, settings, tell, plan=plan), guard=guard):
        yield


def _place(engine: sa.Engine, settings: Settings) -> str:
    """Name database and schema; JSON keeps a database's name with a line break on its line."""
    with Database(engine, settings).reading() as tx:
        names = (tx.execute("SELECT current_database()::text").scalar_one(), tx.schema)
    return "database {}, schema {}".format(*(json.dumps(name, ensure_ascii=False) for name in names))


def _refuse_another(engine: sa.Engine, settings: Settings, *, to_remove: bool = False) -> None:
    """Refuse a newer revision, and, but *to_remove* it, one of an unreleased version."""
    version = _version(engine, settings)
    wrong = revision.outdated(version) if version else None
    if wrong and not (to_remove and str(version) < schema.VERSION):
        raise DatabaseRefusedError(f"{wrong}; nothing was changed")


def _version(engine: sa.Engine, settings: Settings) -> str | None:
    with Database(engine, settings).reading() as tx:
        return state.version(tx)


def _plan(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, guard: bool) -> None:
    """Tell the SQL of all steps; Alembic adds its own, and executes none of it."""
    own = io.StringIO()
    tell(f"-- {_PLAN_HEADER}")
    with _alembic(engine, settings, Steps(engine, settings, tell, plan=True), guard=guard, output=own) as config:
        command.upgrade(config, "base:head", sql=True)
    tell(f"-- note the revision in {schema.VERSION_TABLE}")
    tell(own.getvalue().strip())
    tell(f"-- done: revision {schema.VERSION}")


@contextmanager
def _alembic(
    engine: sa.Engine, settings: Settings, steps: Steps, *, guard: bool, output: io.StringIO | None = None
) -> Iterator[Config]:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(script.folder()).replace("%", "%%"))
    with _handed_over(config, engine, settings, steps, guard=guard):
        yield config


@contextmanager
def _handed_over(config: Config, engine: sa.Engine, settings: Settings, steps: Steps, *, guard: bool) -> Iterator[None]:
    """Hand the revisions what they need.

    Alembic's own statements do not name Postgres's types and operators with their schema, so each of its transactions
    gets our scope first. It has ended whenever a step begins, because an index would wait for it.
    """
    with connect(engine) as connection:
        sa.event.listen(connection, "begin", _scope)
        # It is idle while the steps run on connections of their own.
        connection.exec_driver_sql("SET idle_session_timeout = 0")
        connection.commit()
        steps.before_each = connection.commit
        config.attributes.update(connection=connection, engine=engine, settings=settings, steps=steps, guard=guard)
        yield
        connection.commit()
        connection.exec_driver_sql("RESET idle_session_timeout")
        connection.commit()


def _scope(connection: sa.Connection) -> None:
    timeouts = {"lock_timeout": str(LOCK_TIMEOUT_MS), "statement_timeout": str(STATEMENT_TIMEOUT_MS)}
    connection.execute(sa.text(_SCOPE), timeouts)
