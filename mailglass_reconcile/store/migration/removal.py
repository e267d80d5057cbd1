"""Remove our objects from a database, and describe the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Transaction, array_literal, in_schema
from mailglass_reconcile.store.migration import preflight
from mailglass_reconcile.store.migration.comparison import compare
from mailglass_reconcile.store.migration.session import PLAN_HEADER, Session
from mailglass_reconcile.store.schema import revision, script

DROP_TABLES = """
DROP TABLE IF EXISTS {schema}.mailglass_deliveries, {schema}.mailglass_events, {schema}.mailglass_webhook_events;
DROP FUNCTION IF EXISTS {schema}.mailglass_raise_immutability();
"""
"""Without CASCADE, so that an application's objects that depend on them stop it."""

_OPEN = "SELECT count(*) AS orphans, count(recipient) AS recipients FROM {schema}.mailglass_open_orphans"
_OUTBOX = """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead
  FROM {schema}.mailglass_handler_outbox
"""
_RUNS = "SELECT count(*) FROM {schema}.mailglass_reconcile_runs"


# Functions of other versions too; the one that refuses to change the ledger stays with it.
_OBJECTS = r"""
SELECT 'table' AS kind, c.relname::text AS name
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relkind = 'r' AND c.relname = ANY (CAST(:tables AS text[]))
 UNION ALL
SELECT 'index', i.relname::text
  FROM pg_class AS i JOIN pg_namespace AS n ON n.oid = i.relnamespace
 WHERE n.nspname = :schema AND i.relkind IN ('i', 'I') AND i.relname = ANY (CAST(:indexes AS text[]))
 UNION ALL
SELECT 'function', p.oid::regprocedure::text
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema
   AND (p.proname = ANY (CAST(:functions AS text[])) OR p.proname LIKE 'mailglass\_reconcile\_%')
"""


class RemovableObject(NamedTuple):
    """An object of ours in a database: its kind, and its name or a function's signature."""

    kind: str
    name: str


def find_objects(tx: Transaction) -> list[RemovableObject]:
    """Return the objects that a removal drops."""
    ours = {*installed.INDEXES, *installed.RETENTION, installed.GUARD}
    removed_steps = [step for step in script.steps() if step.only_on != script.MADE_HERE or step.name in ours]
    parameters = {
        "schema": tx.schema,
        "tables": array_literal([*revision.TABLES, revision.VERSION_TABLE]),
        "indexes": array_literal(step.name for step in removed_steps if step.table in revision.MAILGLASS_TABLES),
        "functions": array_literal(step.name for step in removed_steps if step.kind == "function"),
    }
    return [RemovableObject(*row) for row in tx.execute(_OBJECTS, parameters)]


def statements(objects: Sequence[RemovableObject], *, tables: bool) -> list[tuple[str, str]]:
    """Return the statements that drop *objects*, with titles; triggers go with functions, the version table is last."""
    names: dict[str, list[str]] = {"function": [], "index": [], "table": []}
    for found in objects:
        names[found.kind].append(found.name)
    functions = "\n".join(f"DROP FUNCTION IF EXISTS {name} CASCADE;" for name in names["function"])
    our_tables = ", ".join(f"{{schema}}.{name}" for name in names["table"] if name != revision.VERSION_TABLE)
    drop_version = f"DROP TABLE IF EXISTS {{schema}}.{revision.VERSION_TABLE};"
    return [
        *([("drop our triggers and functions", functions)] if functions else []),
        *((f"drop the index {name}", f"DROP INDEX IF EXISTS {{schema}}.{name};") for name in names["index"]),
        *([("drop our tables", f"DROP TABLE IF EXISTS {our_tables};")] if our_tables else []),
        *([("drop the version table", drop_version)] if objects else []),
        *([("drop deliveries, events and raw webhooks", DROP_TABLES)] if tables else []),
    ]


def remove(session: Session, tell: Callable[[str], None], *, tables: bool = False, plan: bool = False) -> None:
    """Remove our objects, with *tables* Mailglass's too if `migrate` made them; with *plan*, print the SQL for psql."""
    with session.connected.reading_catalog() as tx:
        location = preflight.describe_location(tx)
        tell(f"-- {location}" if plan else location)
        preflight.refuse_foreign(tx, compare(tx))
        tx.find_owned().refuse_foreign(tx.schema)  # also without a ledger
        objects = find_objects(tx)
        version = tx.revision()
        if version and revision.is_later_release(version):
            raise DatabaseRefusedError(f"{revision.find_mismatch(version)}; nothing was changed")
        if tables:
            refuse_to_drop(tx)
            tables = bool(preflight.find_mailglass_tables(tx))
    steps = statements(objects, tables=tables)
    if plan:
        tell(PLAN_HEADER)
        for title, sql in steps:
            tell(f"-- {title}\nBEGIN;\n{in_schema(sql, session.settings.database_schema).strip()}\nCOMMIT;")
        return
    if not steps:
        tell("nothing to do: there is nothing to remove")
        return
    session.require_lock()
    for title, sql in steps:
        tell(title)
        session.run(title, sql)
    tell("done: our tables, indexes and triggers are removed")


def refuse_to_drop(tx: Transaction) -> None:
    """Raise an error if Mailglass's own migrations made its tables."""
    if installed.is_made_by_mailglass(tx):
        raise DatabaseRefusedError(
            f"nothing was changed: `migrate` did not make the tables of schema {tx.schema}, so it does not drop them."
            " Run it without --tables, which leaves them"
        )


def describe_removal(tx: Transaction, *, tables: bool = False) -> list[str]:
    """Return a line about pending work, one about lost rows, and one about the tables that a removal keeps.

    With *tables*, it keeps none.
    """
    existing = {table.name for table in find_objects(tx) if table.kind == "table"}
    orphans, recipients = tx.execute(_OPEN).one() if "mailglass_open_orphans" in existing else (0, 0)
    waiting, dead = tx.execute(_OUTBOX).one() if "mailglass_handler_outbox" in existing else (0, 0)
    runs = tx.execute(_RUNS).scalar_one() if "mailglass_reconcile_runs" in existing else 0
    lines = [
        f"will stay unlinked: {pluralize(orphans, 'open event')}; waiting jobs of handlers: {waiting:,};"
        f" dead ones: {dead:,}",
        f"lost: recipients of {pluralize(recipients, 'open event')}, which the ledger does not have;"
        f" a history of {pluralize(runs, 'run')}; every GRANT on our tables",
    ]
    names = ", ".join(tx.name_of(name) for name in sorted(preflight.find_mailglass_tables(tx)))
    if not names:
        return lines
    if tables:
        return [*lines, f"dropped for good: {names}, with every row"]
    if installed.is_made_by_mailglass(tx):
        return [*lines, f"stays: Mailglass's tables with every row ({names})"]
    return [
        *lines,
        f"stays: {names}, with every row, recipients included, and the function"
        " mailglass_raise_immutability, which refuses to change an event."
        " To drop them too, for good: `mailglass-reconcile migrate --remove --tables`",
    ]
