"""What a migration looks at before it changes anything: whether Mailglass's tables have what this package needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sqlalchemy as sa

from mailglass_reconcile.errors import ConfigurationError, SchemaOutdatedError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import catalog, schema, wrong_schema
from mailglass_reconcile.store.database import Database, Transaction, in_schema

_ENCODING = "SELECT current_setting('server_encoding')"

# From the catalog itself: information_schema hides what the role has no right on.
_COLUMNS = """
SELECT c.relname::text AS table_name, array_agg(a.attname::text) AS columns
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relname = ANY (CAST(:tables AS text[]))
 GROUP BY c.relname
"""


def require(engine: sa.Engine, settings: Settings, *, columns: Mapping[str, str]) -> bool:
    """Look at Mailglass's tables before anything is changed, and return whether there are none at all.

    *columns* are those that each table must have, with blanks between.
    """
    schema_name = settings.database_schema
    with Database(engine, settings).reading() as tx:
        encoding = tx.execute(_ENCODING).scalar_one()
        if encoding != "UTF8":
            raise ConfigurationError(
                f"nothing was changed: the database is encoded in {encoding}, which cannot hold every address and id:"
                " create one with ENCODING 'UTF8' and move the tables there"
            )
        if not wrong_schema.is_there(tx):
            raise ConfigurationError(
                f"MAILGLASS_DATABASE_SCHEMA: there is no schema {schema_name} in this database:"
                " correct the setting, or create the schema first"
            )
        rows = tx.execute(_COLUMNS, {"schema": schema_name, "tables": list(columns)})
        found = {row.table_name: set(row.columns) for row in rows}
        if "mailglass_events" not in found and "database_schema" not in settings.model_fields_set:
            _refuse_second_set(tx)
        if not found:
            return True
        missing = [
            *_missing_columns(found, columns),
            *(_missing_indexes(tx, found) if schema.made_by_mailglass(tx) else ()),
        ]
    if missing:
        raise SchemaOutdatedError(
            f"nothing was changed: schema {schema_name} lacks {'; '.join(missing)}."
            " Run Mailglass's own migrations first"
        )
    return False


def made_by_mailglass(engine: sa.Engine, settings: Settings) -> bool:
    """Whether Mailglass made its tables itself, so that retention cannot work there."""
    with Database(engine, settings).reading() as tx:
        return schema.made_by_mailglass(tx)


def _refuse_second_set(tx: Transaction) -> None:
    others = wrong_schema.ledgers(tx).others
    if others:
        raise ConfigurationError(
            f"nothing was changed: schema {tx.schema} has no mailglass_events, but schema {', '.join(others)} has:"
            f" set MAILGLASS_DATABASE_SCHEMA to that schema, or to {tx.schema} for a second set of tables"
        )


def _missing_columns(found: Mapping[str, set[str]], columns: Mapping[str, str]) -> Iterator[str]:
    for table, names in columns.items():
        if table not in found:
            yield f"table {table}"
        else:
            yield from (f"column {table}.{column}" for column in names.split() if column not in found[table])


def _missing_indexes(tx: Transaction, found: Mapping[str, set[str]]) -> Iterator[str]:
    """Name the unique indexes that are not there, with the statements that make them.

    Of a column that is not there either, the column says it.
    """
    unique = {name: index for name, index in schema.MAILGLASS_INDEXES.items() if index.must_be_unique}
    for name in schema.index_faults(tx, unique):
        index = unique[name]
        if found.get(index.table, set()).issuperset(index.columns.split()):
            columns = ", ".join(index.columns.split())
            statement = in_schema(catalog.creating(name), tx.schema)
            yield f"a unique index on {index.table} ({columns}), as by {statement}"
