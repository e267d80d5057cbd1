"""What this role may do."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import INSUFFICIENT_PRIVILEGE, DatabaseRefusedError, sqlstate
from mailglass_reconcile.store.database import Connected, Transaction, array_literal

_STATE = "last_event_type last_event_at terminal dispatched_at delivered_at bounced_at complained_at suppressed_at"

SWEEPER = (
    ("mailglass_reconcile_version", "SELECT", ""),
    ("mailglass_events", "SELECT", ""),
    ("mailglass_events", "INSERT", ""),
    (
        "mailglass_deliveries",
        "SELECT",
        "id tenant_id mailable stream recipient provider provider_message_id lock_version updated_at inserted_at"
        f" {_STATE}",
    ),
    ("mailglass_deliveries", "UPDATE", f"{_STATE} lock_version updated_at"),
    ("mailglass_open_orphans", "SELECT", ""),
    ("mailglass_open_orphans", "INSERT", "event_id tenant_id arrived_at"),
    ("mailglass_open_orphans", "UPDATE", "provider recipient recipient_lost rule ids state refused"),
    ("mailglass_open_orphans", "DELETE", ""),
    ("mailglass_open_orphan_ids", "SELECT", ""),
    ("mailglass_open_orphan_ids", "INSERT", ""),
    ("mailglass_open_orphan_ids", "DELETE", ""),
    ("mailglass_webhook_events", "SELECT", "id status inserted_at"),
    ("mailglass_webhook_events", "DELETE", ""),
    ("mailglass_webhook_events", "UPDATE", "id"),
    ("mailglass_handler_outbox", "SELECT", ""),
    ("mailglass_handler_outbox", "INSERT", "event_id delivery_id type next_at inserted_at"),
    ("mailglass_handler_outbox", "DELETE", ""),
    ("mailglass_handler_outbox", "UPDATE", "error"),
    ("mailglass_handled_types", "SELECT", ""),
    ("mailglass_reconcile_runs", "SELECT", ""),
    ("mailglass_reconcile_runs", "INSERT", ""),
    ("mailglass_reconcile_runs", "UPDATE", ""),
    ("mailglass_reconcile_runs", "DELETE", ""),
)
"""The grants of docs/grants.sql to the sweeper: table, privilege, and columns with blanks between; none is all."""

_ROLE = r"""
SELECT quote_ident(current_user) AS role, quote_ident(n.nspname) AS schema,
       has_schema_privilege(n.oid, 'USAGE') AS usage,
       EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname LIKE 'mailglass\_%'
                  AND c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'DELETE')) AS sweeps
  FROM pg_namespace AS n WHERE n.nspname = :schema
"""

# By the catalog, not by to_regclass: that fails without USAGE on the schema.
_LACKING = """
SELECT w.relation, w.privilege, string_agg(w.attribute, ', ' ORDER BY w.number) AS columns
  FROM unnest(CAST(:relations AS text[]), CAST(:privileges AS text[]), CAST(:columns AS text[]))
       WITH ORDINALITY AS w (relation, privilege, attribute, number)
  JOIN pg_namespace AS n ON n.nspname = :schema
  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.relation AND c.relkind IN ('r', 'p')
  LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = w.attribute AND NOT a.attisdropped
 WHERE CASE WHEN w.attribute = '' THEN NOT has_table_privilege(c.oid, w.privilege)
            ELSE a.attnum IS NOT NULL AND NOT has_column_privilege(c.oid, a.attnum, w.privilege) END
 GROUP BY w.relation, w.privilege ORDER BY min(w.number)
"""

_HIDDEN = """
SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = ANY (CAST(:relations AS text[])) AND c.relkind IN ('r', 'p')
   AND row_security_active(c.oid) ORDER BY 1
"""


class Lacking(NamedTuple):
    """Rights that this role lacks: the role and the schema as SQL writes them, and the rights by table.

    `sweeps`: it may delete something, as no other role than a sweeper may.
    """

    role: str
    schema: str
    usage: bool
    rights: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]
    sweeps: bool = True

    def grants(self) -> str:
        """Return the statements that grant what is lacking, in one line."""
        statements = [] if self.usage else [f"GRANT USAGE ON SCHEMA {self.schema} TO {self.role}"]
        statements += [f"GRANT {right} ON {self.schema}.{table} TO {self.role}" for table, right in self.rights]
        return "; ".join(statements)


def lacking(tx: Transaction) -> Lacking | None:
    """Return which of the sweeper's rights this role lacks on the tables that are there; None without such a schema.

    `hidden` are the tables of which row level security hides rows from this role.
    """
    row = tx.execute(_ROLE, {"schema": tx.schema}).one_or_none()
    if row is None:
        return None
    wanted = [(table, right, column) for table, right, columns in SWEEPER for column in columns.split() or [""]]
    parameters = {
        "schema": tx.schema,
        "relations": array_literal(table for table, _, _ in wanted),
        "privileges": array_literal(right for _, right, _ in wanted),
        "columns": array_literal(column for _, _, column in wanted),
    }
    found = tx.execute(_LACKING, parameters).all()
    rights = tuple(
        (one.relation, f"{one.privilege} ({one.columns})" if one.columns else one.privilege) for one in found
    )
    tables = array_literal(dict.fromkeys(table for table, _, _ in SWEEPER))
    hidden = tx.execute(_HIDDEN, {"schema": tx.schema, "relations": tables}).scalars().all()
    return Lacking(row.role, row.schema, row.usage, rights, tuple(hidden), row.sweeps)


def require_rights(connected: Connected, error: DBAPIError) -> None:
    """Raise if *error* is due to a right that this role lacks; row level security and triggers refuse single rows."""
    if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
        return
    with connected.reading() as tx:
        lacks = lacking(tx)
    if lacks is None:
        return
    if lacks.rights or not lacks.usage:
        raise DatabaseRefusedError(f"role {lacks.role} lacks a privilege (SQLSTATE 42501): run {lacks.grants()}")
    if lacks.hidden:
        raise DatabaseRefusedError(
            f"row level security of {', '.join(lacks.hidden)} hides rows from role {lacks.role} (SQLSTATE 42501):"
            f" run ALTER ROLE {lacks.role} BYPASSRLS"
        )
