"""The names of the schema's objects, and whose tables a database has."""

from __future__ import annotations

from typing import Any

from mailglass_reconcile.errors import docs_url
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.schema import revision, script

INDEXES = (*script.steps_of_kind("index"), "mailglass_deliveries_tenant_inserted_idx")
"""Our indexes, on our tables and on Mailglass's; the last one only where `migrate` made these."""

GUARD = "mailglass_events_no_truncate"
"""The trigger against TRUNCATE and its function, on tables that `migrate` made."""

CONFLICT_INDEXES = {
    "mailglass_events_idempotency_key_idx": "idempotency_key",
    "mailglass_deliveries_provider_msg_id_idx": "provider provider_message_id",
}
"""Mailglass's unique indexes that ON CONFLICT needs, with their columns."""

RETENTION = ("mailglass_reconcile_prune_events_v1", "mailglass_reconcile_prune_deliveries_v1")
"""The functions that delete old rows; they exist only for tables that `migrate` made."""

# Mailglass's own migrations make `mailglass_suppressions`; ours make the functions of retention, and one that refuses
# every other DELETE.
_MADE_BY_MAILGLASS = """
SELECT bool_or(c.relname <> 'mailglass_suppressions')
       AND (bool_or(c.relname = 'mailglass_suppressions')
            OR NOT EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                            WHERE n.nspname = :schema
                              AND (p.proname = 'mailglass_raise_immutability'
                                   AND p.prosrc LIKE '%mailglass_reconcile.retention%'
                                   OR p.proname = 'mailglass_reconcile_prune_events_v1')))
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema
   AND c.relname IN ('mailglass_suppressions', 'mailglass_events', 'mailglass_deliveries', 'mailglass_webhook_events')
"""

_EXISTS = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)"

# Without a ledger, the database counts as not migrated.
_VERSION = """
SELECT max(version_num) FROM {schema}.mailglass_reconcile_version WHERE to_regclass(:events) IS NOT NULL
"""

WITHOUT_LEDGER = (
    "the schema has our tables but no mailglass_events: Mailglass was rolled back, or its tables have moved to another"
    f" schema, see {docs_url('with-mailglass.md')}"
)

OUR_OBJECTS = frozenset({*revision.TABLES, *INDEXES, revision.VERSION_TABLE})

READ_ONLY = {"mailglass_reconcile": "read only"}
"""The `info` of the tables that this package offers for queries, which an application's migrations leave out."""


def is_made_by_mailglass(tx: Transaction) -> bool:
    """Return True if Mailglass's own migrations made the tables; False also if there are none."""
    return bool(tx.execute(_MADE_BY_MAILGLASS, {"schema": tx.schema}).scalar_one())


def schema_exists(tx: Transaction) -> bool:
    """Return True if the database has the configured schema."""
    return bool(tx.execute(_EXISTS, {"schema": tx.schema}).scalar_one())


def require_migrated(tx: Transaction) -> None:
    """Raise `SchemaOutdatedError` unless this version works on the database's revision, and there is a ledger."""
    revision.require(tx.execute(_VERSION, tx.names_of("events")).scalar_one())


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Keep Alembic's autogenerate from dropping our tables: pass it as `include_object` in your `env.py`.

    Our tables and indexes are left out, and so are Mailglass's tables that your metadata does not have, or has from
    `mailglass_reconcile.tables`.

    Args:
        item: The schema object.
        name: The object's name.
        type_: `table`, `index`, `column`, …
        reflected: True if it comes from the database.
        compare_to: The object of the application's metadata in its place, or None.
    """
    if not reflected or compare_to is not None:
        return bool(item.info != READ_ONLY)
    if type_ == "table":
        return name not in OUR_OBJECTS | revision.MAILGLASS_TABLES.keys()
    return name not in OUR_OBJECTS and getattr(getattr(item, "table", None), "name", None) not in OUR_OBJECTS
