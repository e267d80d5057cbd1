"""The checks before a migration changes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError, SchemaOutdatedError
from mailglass_reconcile.store import location, schema
from mailglass_reconcile.store.comparison import Comparison
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.location import SchemaTables

_COLUMNS = {
    "mailglass_deliveries": (
        "id tenant_id recipient provider provider_message_id last_event_type last_event_at terminal dispatched_at"
        " delivered_at bounced_at complained_at suppressed_at lock_version updated_at inserted_at"
    ),
    "mailglass_events": (
        "id tenant_id delivery_id type occurred_at idempotency_key normalized_payload metadata needs_reconciliation"
        " inserted_at"
    ),
    "mailglass_webhook_events": "id status inserted_at",
}
"""The columns that Mailglass's tables must have; others may be missing."""

_ENCODING = "SELECT current_setting('server_encoding')"

# From the catalog, because information_schema hides objects without a privilege.
_FOUND_COLUMNS = """
SELECT c.relname::text AS table_name, array_agg(a.attname::text) AS columns
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relname = ANY (CAST(:tables AS text[]))
 GROUP BY c.relname
"""


def require_usable_schema(tx: Transaction, version: str | None) -> bool:
    """Raise an error if no tables can be made in the database or the schema; return True if Mailglass's tables exist.

    They are made only once: on a database at a *version*, a missing table was dropped.
    """
    encoding = tx.execute(_ENCODING).scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"nothing was changed: the database is encoded in {encoding}, which cannot hold every address and id:"
            " create one with ENCODING 'UTF8' and move the tables there"
        )
    if not schema.schema_exists(tx):
        raise ConfigurationError(
            f"MAILGLASS_DATABASE_SCHEMA: there is no schema {tx.schema} in this database:"
            " correct the setting, or create the schema first"
        )
    schemas = tx.load_schemas()
    if relocation := location.find_relocation(schemas, tx.schema):
        raise DatabaseRefusedError(f"nothing was changed: {relocation}")
    rows = tx.execute(_FOUND_COLUMNS, {"schema": tx.schema, "tables": list(_COLUMNS)})
    tables = {row.table_name: set(row.columns) for row in rows}
    if "mailglass_events" not in tables:
        _require_no_other_ledger(tx, schemas)
    missing = "; ".join(_describe_missing(tables))
    if tables and missing and (version or schema.is_made_by_mailglass(tx)):
        raise SchemaOutdatedError(
            f"nothing was changed: schema {tx.schema} lacks {missing}. Run Mailglass's own migrations first; without"
            " Mailglass, restore it from a backup"
        )
    return bool(tables)


def _describe_missing(tables: Mapping[str, set[str]]) -> Iterator[str]:
    for table, names in _COLUMNS.items():
        if table not in tables:
            yield f"table {table}"
        else:
            yield from (f"column {table}.{column}" for column in names.split() if column not in tables[table])


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


def refuse_incurable(tx: Transaction, comparison: Comparison) -> None:
    """Raise an error if no step cures a grave difference."""
    incurable = [
        difference for difference in comparison.differences if not difference.is_curable and difference.is_grave
    ]
    if incurable:
        lines = "; ".join(f"{difference.message}: {difference.remedy(tx)}" for difference in incurable)
        raise SchemaOutdatedError(f"nothing was changed, because no step of `migrate` cures this: {lines}")


def refuse_without_revision(comparison: Comparison) -> None:
    """Raise an error if our tables exist although the database has no revision, so nobody knows which they are of."""
    if comparison.tables:
        raise SchemaOutdatedError(
            f"nothing was changed: {', '.join(comparison.tables)} exist, but the database has no revision: restore"
            f" {schema.VERSION_TABLE} from a backup, or run `mailglass-reconcile migrate --remove`, then"
            " `mailglass-reconcile migrate`"
        )
