"""What is missing in the database that recording and linking rely on: tables, indexes, triggers and functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction, in_schema

Kind = Literal["schema", "indexes", "triggers", "functions"]

MIGRATE = "run `mailglass-reconcile migrate`"
RESTORE = "restore it from a backup; or, with Mailglass, run its own migrations"

_TABLES = """
SELECT w.name FROM unnest(CAST(:names AS text[])) AS w (name)
 WHERE NOT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE n.nspname = :schema AND c.relname = w.name AND c.relkind IN ('r', 'p'))
"""

_FUNCTIONS = """
SELECT w.name FROM unnest(CAST(:names AS text[])) AS w (name)
 WHERE NOT EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                    WHERE n.nspname = :schema AND p.proname = w.name)
"""


class Fault(NamedTuple):
    """Something that is missing or at work no more.

    Attributes:
        kind: What it is.
        name: Its name.
        message: What it is and what follows.
        grave: Whether recording or linking fails or is late.
        sql: Of an index: the statement that makes it; `{schema}` is the schema's quoted name.
        is_theirs: Whether it is Mailglass's, so that `migrate` leaves it alone.
    """

    kind: Kind
    name: str
    message: str
    grave: bool = True
    sql: str | None = None
    is_theirs: bool = False

    def remedy(self, tx: Transaction) -> str:
        """Return the step that cures it: `migrate`, or the statement."""
        if not self.is_theirs:
            return MIGRATE
        return in_schema(self.sql, tx.schema) if self.sql else RESTORE


def faults(tx: Transaction, *, guard: bool = True) -> list[Fault]:
    """Return what is missing in a schema that is at this version, the gravest first.

    With *guard*, the guard against TRUNCATE is looked for too, on tables that `migrate` made.
    """
    tables = [*schema.TABLES, *sorted(schema.MAILGLASS_TABLES)]
    gone = set(tx.execute(_TABLES, {"names": tables, "schema": tx.schema}).scalars())
    made_here = not schema.made_by_mailglass(tx)
    found = [Fault("schema", name, f"table {name} is missing", is_theirs=name not in schema.TABLES) for name in gone]
    found += _triggers(tx, made_here=made_here, guard=guard)
    found += _functions(tx, schema.FUNCTIONS, "nothing can be recorded or linked")
    found += _indexes(tx, gone, made_here=made_here)
    found += _functions(tx, schema.RETENTION, "the prune cannot delete old rows", grave=False) if made_here else ()
    return sorted(found, key=lambda one: not one.grave)


_EFFECTS = {
    schema.GUARD: "TRUNCATE would empty the ledger",
    schema.IMMUTABLE: "the ledger can be changed",
}


def _triggers(tx: Transaction, *, made_here: bool, guard: bool) -> Iterator[Fault]:
    wanted = [*schema.TRIGGERS, *([schema.IMMUTABLE, *([schema.GUARD] if guard else [])] if made_here else [])]
    for name, fault in schema.trigger_faults(tx, wanted).items():
        effect = _EFFECTS.get(name, "new orphans are not noticed")
        message = f"trigger {name} on mailglass_events {fault}, so {effect}"
        yield Fault("triggers", name, message, grave=name in schema.TRIGGERS)


def _indexes(tx: Transaction, gone: set[str], *, made_here: bool) -> Iterator[Fault]:
    for name, fault in schema.index_faults(tx, schema.ALL_INDEXES).items():
        index = schema.ALL_INDEXES[name]
        is_mailglass_s = name in schema.MAILGLASS_INDEXES
        if index.table in gone:
            continue
        effect = "nothing can be recorded or linked" if index.must_be_unique else "statements read whole tables"
        yield Fault(
            "indexes",
            name,
            f"index {name} {fault}, so {effect}",
            grave=index.must_be_unique or not is_mailglass_s,
            sql=f"REINDEX INDEX CONCURRENTLY {{schema}}.{name}" if fault == schema.INVALID else creating(name),
            is_theirs=is_mailglass_s and not made_here,
        )


def creating(name: str, *, concurrently: bool = True) -> str:
    """Return the statement that makes the index *name*."""
    index = schema.ALL_INDEXES[name]
    unique, way = "UNIQUE " if index.unique else "", "CONCURRENTLY " if concurrently else ""
    return f"CREATE {unique}INDEX {way}{name} ON {{schema}}.{index.table} {index.on}"


def _functions(tx: Transaction, names: Sequence[str], effect: str, *, grave: bool = True) -> Iterator[Fault]:
    for name in tx.execute(_FUNCTIONS, {"names": list(names), "schema": tx.schema}).scalars():
        yield Fault("functions", name, f"function {name} is missing, so {effect}", grave=grave)
