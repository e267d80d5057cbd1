"""What a database has of ours, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store import catalog, revision, schema
from mailglass_reconcile.store.catalog import Fault
from mailglass_reconcile.store.database import Transaction

_OURS = """
SELECT count(*) AS anything
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = ANY (CAST(:objects AS text[]))
"""

# Tables with a name of ours that lack the columns of every version of it.
_FOREIGN = """
SELECT w.name, array_agg(w.attribute) AS missing
  FROM unnest(CAST(:names AS text[]), CAST(:attributes AS text[])) AS w (name, attribute)
  JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', CAST(:schema AS text), w.name)) AND c.relkind = 'r'
 WHERE NOT EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = c.oid AND a.attname = w.attribute AND NOT a.attisdropped)
 GROUP BY w.name ORDER BY w.name
"""

_TABLES_IN = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = ANY (CAST(:tables AS text[])) AND c.relkind = 'r' ORDER BY 1
"""

# An index belongs to the owner of its table, so an index of ours on Mailglass's tables is theirs.
_NOT_OURS = """
SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'i' THEN 'index' ELSE 'relation' END AS kind,
       c.relname::text AS name, pg_get_userbyid(c.relowner)::text AS owner
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
 WHERE n.nspname = :schema
   AND (c.relname = ANY (CAST(:tables AS text[]))
        AND (c.relkind <> 'r' OR pg_get_userbyid(c.relowner) <> current_user)
        OR c.relname = ANY (CAST(:table_indexes AS text[]))
        AND (c.relkind <> 'i' OR pg_get_userbyid(c.relowner) <> current_user)
        OR c.relname = ANY (CAST(:indexes AS text[]))
        AND (c.relkind NOT IN ('i', 'I') OR i.indrelid NOT IN (coalesce(to_regclass(:deliveries)::oid, 0),
                                                    coalesce(to_regclass(:webhooks)::oid, 0))))
 UNION ALL
SELECT 'function', p.proname::text, pg_get_userbyid(p.proowner)::text
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema AND p.proname = ANY (CAST(:functions AS text[]))
   AND pg_get_userbyid(p.proowner) <> current_user
 UNION ALL
SELECT 'trigger', t.tgname::text, pg_get_userbyid(p.proowner)::text
  FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
 WHERE t.tgrelid = to_regclass(:events) AND t.tgname = ANY (CAST(:functions AS text[]))
   AND (pg_get_userbyid(p.proowner) <> current_user OR p.proname <> t.tgname)
 ORDER BY 1, 2
"""


def version(tx: Transaction) -> str | None:
    """Return the revision that the database is at, or None."""
    return revision.of_database(tx)


def has_anything(tx: Transaction) -> bool:
    """Whether any table or index of ours is there."""
    return bool(tx.execute(_OURS, _names(tx)).one().anything)


def faults(tx: Transaction, *, guard: bool) -> list[Fault]:
    """Return what this version needs and the database lacks; the guard against TRUNCATE if it is wanted."""
    return [*catalog.faults(tx, guard=guard), *(_guard(tx) if guard else ())]


def _guard(tx: Transaction) -> Iterator[Fault]:
    """On tables that Mailglass made, only if it was asked for."""
    if schema.made_by_mailglass(tx):
        for name, fault in schema.trigger_faults(tx, [schema.GUARD]).items():
            yield Fault("triggers", name, f"trigger {name} {fault}")


def owner(tx: Transaction) -> str | None:
    """Return the other role that owns all that is ours, or None."""
    owners = {row.owner for row in tx.execute(_NOT_OURS, _names(tx))}
    return owners.pop() if len(owners) == 1 else None


def tables_in(tx: Transaction, schema_name: str) -> list[str]:
    """Return the quoted names of our tables in a schema."""
    return list(tx.execute(_TABLES_IN, {"schema": schema_name, "tables": _names(tx)["tables"]}).scalars())


def refuse_others(tx: Transaction) -> None:
    """Refuse to build on or drop an object with one of our names if another role owns it, or it is of another kind."""
    found = tx.execute(_NOT_OURS, _names(tx)).all()
    if found:
        objects = "; ".join(f"{row.kind} {row.name} belongs to role {row.owner}" for row in found)
        role = tx.execute("SELECT current_user::text").scalar_one()
        raise DatabaseRefusedError(
            f"nothing was changed: in schema {tx.schema}, {objects}. The name is reserved for an object of role"
            f" {role}: drop the object, or connect as its owner if it comes from an earlier migration"
        )
    pairs = [(name, column) for name, columns in schema.TABLES.items() for column in columns.split()]
    foreign = {
        "schema": tx.schema,
        "names": [name for name, _ in pairs],
        "attributes": [column for _, column in pairs],
    }
    for name, missing in tx.execute(_FOREIGN, foreign):
        raise DatabaseRefusedError(
            f"nothing was changed: table {name} of schema {tx.schema} is not ours, because it lacks"
            f" {', '.join(missing)}. The name is reserved: rename the table"
        )


def _names(tx: Transaction) -> dict[str, Any]:
    return {
        "schema": tx.schema,
        "events": tx.name_of("mailglass_events"),
        "deliveries": tx.name_of("mailglass_deliveries"),
        "webhooks": tx.name_of("mailglass_webhook_events"),
        "version_table": tx.name_of(schema.VERSION_TABLE),
        "objects": list(schema.OUR_OBJECTS),
        "tables": [*schema.TABLES, schema.VERSION_TABLE],
        "table_indexes": [name for name, index in schema.INDEXES.items() if index.table in schema.TABLES],
        "indexes": [name for name, index in schema.INDEXES.items() if index.table not in schema.TABLES],
        "functions": [*schema.TRIGGERS, schema.GUARD, *schema.RETENTION, *schema.FUNCTIONS],
    }
