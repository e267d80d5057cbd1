"""What a migration looks at before it changes anything, and refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError, SchemaOutdatedError
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.comparison import Comparison
from mailglass_reconcile.store.database import Transaction

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
"""What Mailglass's tables must have; a column that we do not use may be missing."""

_ENCODING = "SELECT current_setting('server_encoding')"

# From the catalog itself: information_schema hides what the role has no privilege on.
_FOUND_COLUMNS = """
SELECT c.relname::text AS table_name, array_agg(a.attname::text) AS columns
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relname = ANY (CAST(:tables AS text[]))
 GROUP BY c.relname
"""


def require_place(tx: Transaction, version: str | None) -> bool:
    """Refuse a database or a schema in which no table may be made; return whether Mailglass's tables are there.

    They are made only once: on a database that is at a *version*, one that is missing was dropped.
    """
    encoding = tx.execute(_ENCODING).scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"nothing was changed: the database is encoded in {encoding}, which cannot hold every address and id:"
            " create one with ENCODING 'UTF8' and move the tables there"
        )
    if not schema.exists(tx):
        raise ConfigurationError(
            f"MAILGLASS_DATABASE_SCHEMA: there is no schema {tx.schema} in this database:"
            " correct the setting, or create the schema first"
        )
    rows = tx.execute(_FOUND_COLUMNS, {"schema": tx.schema, "tables": list(_COLUMNS)})
    found = {row.table_name: set(row.columns) for row in rows}
    if "mailglass_events" not in found:
        _require_no_other_ledger(tx)
    missing = "; ".join(_missing(found))
    if found and missing and (version or schema.made_by_mailglass(tx)):
        raise SchemaOutdatedError(
            f"nothing was changed: schema {tx.schema} lacks {missing}. Run Mailglass's own migrations first; without"
            " Mailglass, restore it from a backup"
        )
    return bool(found)


def _missing(found: Mapping[str, set[str]]) -> Iterator[str]:
    for table, names in _COLUMNS.items():
        if table not in found:
            yield f"table {table}"
        else:
            yield from (f"column {table}.{column}" for column in names.split() if column not in found[table])


def _require_no_other_ledger(tx: Transaction) -> None:
    others = [name for name in schema.ledgers(tx) if name != tx.schema]
    if others and "database_schema" not in tx.settings.model_fields_set:
        raise ConfigurationError(
            f"nothing was changed: schema {tx.schema} has no mailglass_events, but schema {', '.join(others)} has:"
            f" set MAILGLASS_DATABASE_SCHEMA to that schema, or to {tx.schema} for a second set of tables"
        )


def refuse_foreign(tx: Transaction, comparison: Comparison) -> None:
    """Refuse to build on or drop an object with a name of ours that is not this role's."""
    if comparison.foreign:
        raise DatabaseRefusedError(
            f"nothing was changed: in schema {tx.schema}, {'; '.join(comparison.foreign)}. The name is reserved for an"
            f" object of role {comparison.role}: drop or rename the object, or connect as its owner if it comes from an"
            " earlier migration"
        )


def refuse_incurable(tx: Transaction, comparison: Comparison) -> None:
    """Refuse differences that no step cures, but for those of Mailglass's that cost only speed."""
    incurable = [one for one in comparison.differences if not one.is_curable and one.is_grave]
    if incurable:
        lines = "; ".join(f"{difference.message}: {difference.remedy(tx)}" for difference in incurable)
        raise SchemaOutdatedError(f"nothing was changed, because no step of `migrate` cures this: {lines}")
