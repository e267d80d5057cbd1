"""The checks before a migration changes anything."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError, SchemaOutdatedError, docs_url
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Transaction, array_literal
from mailglass_reconcile.store.migration.comparison import Comparison
from mailglass_reconcile.store.schema import location, revision
from mailglass_reconcile.store.schema.location import SchemaTables

NO_WAY_BACK = "An older version works on the newer schema: install it, and leave the database as it is"

_ENCODING = "SELECT current_setting('server_encoding')"

_MISSING_GRANT = """
SELECT format('GRANT CREATE ON SCHEMA %I TO %I', nspname, current_user)
  FROM pg_namespace WHERE nspname = :schema AND NOT has_schema_privilege(oid, 'CREATE')
"""

_FOUND_TABLES = """
SELECT c.relname::text
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relname = ANY (CAST(:tables AS text[]))
"""


def describe_location(tx: Transaction) -> str:
    """Return the names of database and schema, as JSON, so that a name with a line break stays on its line."""
    names = (tx.execute("SELECT current_database()::text").scalar_one(), tx.schema)
    return "database {}, schema {}".format(*(json.dumps(name, ensure_ascii=False) for name in names))


def require_usable_schema(tx: Transaction) -> bool:
    """Raise an error if no tables can be made in the database or the schema; return True if Mailglass's tables exist.

    They are made at once, so one that is missing beside others was dropped.
    """
    encoding = tx.execute(_ENCODING).scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"nothing was changed: the database is encoded in {encoding}, which cannot hold every address and id:"
            " create one with ENCODING 'UTF8' and move the tables there"
        )
    if not installed.schema_exists(tx):
        raise ConfigurationError(
            f"MAILGLASS_DATABASE_SCHEMA: there is no schema {tx.schema} in this database:"
            " correct the setting, or create the schema first"
        )
    schemas = tx.load_schemas()
    if relocation := location.find_relocation(schemas, tx.schema):
        raise DatabaseRefusedError(f"nothing was changed: {relocation}")
    tables = find_mailglass_tables(tx)
    if "mailglass_events" not in tables:
        _require_no_other_ledger(tx, schemas)
    missing = sorted(revision.MAILGLASS_TABLES.keys() - tables)
    if tables and missing:
        raise SchemaOutdatedError(
            f"nothing was changed: schema {tx.schema} lacks table {', '.join(missing)}. Run Mailglass's own migrations"
            " first; without Mailglass, restore it from a backup"
        )
    return bool(tables)


def find_mailglass_tables(tx: Transaction) -> set[str]:
    """Return the names of Mailglass's tables that exist in the schema."""
    parameters = {"schema": tx.schema, "tables": array_literal(revision.MAILGLASS_TABLES)}
    return set(tx.execute(_FOUND_TABLES, parameters).scalars())


def _require_no_other_ledger(tx: Transaction, schemas: Sequence[SchemaTables]) -> None:
    ledgers = [row.name for row in schemas if row.has_ledger]
    if ledgers and "database_schema" not in tx.settings.model_fields_set:
        raise ConfigurationError(
            f"nothing was changed: schema {tx.schema} has no mailglass_events, but schema {', '.join(ledgers)} has:"
            f" set MAILGLASS_DATABASE_SCHEMA to that schema, or to {tx.schema} for a second set of tables"
        )


def refuse_foreign(tx: Transaction, comparison: Comparison) -> None:
    """Raise an error if another role owns an object with one of our names."""
    if comparison.foreign:
        raise DatabaseRefusedError(
            f"nothing was changed: in schema {tx.schema}, {'; '.join(comparison.foreign)}. The name is reserved for an"
            f" object of role {comparison.role}: drop or rename the object, or connect as its owner if it comes from an"
            " earlier migration"
        )


def require_create(tx: Transaction) -> None:
    """Raise an error if this role may not create objects in the schema: a revision that alters a table could commit."""
    if grant := tx.execute(_MISSING_GRANT, {"schema": tx.schema}).scalar_one_or_none():
        raise DatabaseRefusedError(
            f"nothing was changed: this role may not create objects in schema {tx.schema} (SQLSTATE 42501): run {grant}"
        )


def refuse_incurable(tx: Transaction, comparison: Comparison) -> None:
    """Raise an error if no step cures a grave difference."""
    incurable = [
        difference for difference in comparison.differences if not difference.is_curable and difference.is_grave
    ]
    if incurable:
        lines = "; ".join(f"{difference.message}: {difference.remedy(tx)}" for difference in incurable)
        raise SchemaOutdatedError(f"nothing was changed, because no step of `migrate` cures this: {lines}")


def refuse_partitioned(comparison: Comparison) -> None:
    """Raise an error if an index would be built on a partitioned table, which Postgres cannot do concurrently."""
    for difference in comparison.curable:
        if difference.step.kind == "index" and difference.is_on_partitioned:
            raise DatabaseRefusedError(
                f"nothing was changed: table {difference.step.table} is partitioned: build the index"
                f" {difference.step.name} manually, as"
                f" {docs_url('with-mailglass.md#a-partitioned-mailglass_deliveries')} describes, then run migrate again"
            )


def refuse_without_revision(comparison: Comparison) -> None:
    """Raise an error if our tables exist although the database has no revision, so nobody knows which they are of."""
    if problem := comparison.lost_revision:
        raise SchemaOutdatedError(f"nothing was changed: {problem}")
