"""Delete old events and deliveries, through the retention functions of the tables' owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import NIL, OpenConnection, Transaction, in_schema
from mailglass_reconcile.store.schema.revision import Problem

EVENTS, DELIVERIES = installed.RETENTION
SETTINGS = "MAILGLASS_RETENTION_EVENTS_DAYS and MAILGLASS_RETENTION_DELIVERIES_DAYS"

# From the catalog, because a regprocedure needs USAGE on the schema.
_FUNCTION = """
SELECT quote_ident(current_user) AS role, has_function_privilege(p.oid, 'EXECUTE') AS may_call,
       pg_has_role(session_user, p.proowner, 'MEMBER') AS is_owner
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema AND p.proname = :name AND oidvectortypes(p.proargtypes) = :arguments
"""
_ARGUMENTS = {
    EVENTS: "integer, integer, uuid",
    DELIVERIES: "integer, integer, text, text, timestamp without time zone, uuid",
}

_LEAST_DAYS = "SELECT relation, days FROM {schema}.mailglass_reconcile_retention"
_STORE_LEAST_DAYS = """
INSERT INTO {schema}.mailglass_reconcile_retention (relation, days) VALUES ('RELATION', DAYS)
    ON CONFLICT (relation) DO UPDATE SET days = excluded.days;
"""

_PRUNE_EVENTS = """
SELECT after_id::text AS after_id, deleted, kept
  FROM {schema}.mailglass_reconcile_prune_events_v1(
         CAST(:days AS integer), CAST(:size AS integer), CAST(:after_id AS uuid))
"""
_PRUNE_DELIVERIES = """
SELECT after_tenant, after_provider, after_time::text AS after_time, after_id::text AS after_id, deleted
  FROM {schema}.mailglass_reconcile_prune_deliveries_v1(
         CAST(:days AS integer), CAST(:size AS integer), CAST(:after_tenant AS text), CAST(:after_provider AS text),
         CAST(:after_time AS timestamp), CAST(:after_id AS uuid))
"""


_RELATIONS = {EVENTS: "mailglass_events", DELIVERIES: "mailglass_deliveries"}
_SETTINGS = {EVENTS: "retention_events_days", DELIVERIES: "retention_deliveries_days"}


def find_problem(tx: Transaction, name: str, days: int) -> Problem | None:
    """Return the problem that keeps this role from deleting rows of an age of *days* with the function *name*."""
    if installed.is_made_by_mailglass(tx):
        return Problem(
            f"`migrate` did not make the tables of schema {tx.schema}, so no event is deleted", f"unset {SETTINGS}"
        )
    arguments = _ARGUMENTS[name]
    row = tx.execute(_FUNCTION, {"schema": tx.schema, "name": name, "arguments": arguments}).one_or_none()
    if row is None:
        return Problem(f"schema {tx.schema} has no function {name}", "run `mailglass-reconcile migrate`")
    if not row.may_call:
        function = in_schema(f"{{schema}}.{name}({arguments})", tx.schema)
        grant = f"GRANT EXECUTE ON FUNCTION {function} TO {row.role}"
        return Problem(f"role {row.role} lacks a privilege (SQLSTATE 42501)", grant)
    least_days = None if row.is_owner else _load_least_days(tx).get(_RELATIONS[name])
    if row.is_owner or (least_days is not None and days >= least_days):
        return None
    return Problem(
        f"the owner of {_RELATIONS[name]} lets role {row.role} delete "
        + ("no row" if least_days is None else f"only rows that are older than {least_days} days, not {days}"),
        f"run `mailglass-reconcile migrate` as the owner, with MAILGLASS_{_SETTINGS[name].upper()}={days}",
    )


def _load_least_days(tx: Transaction) -> dict[str, int]:
    return {row.relation: row.days for row in tx.execute(_LEAST_DAYS)}


def format_least_days(tx: Transaction) -> str:
    """Return the statements that store the retention that is set here as the least ages; none if they are stored.

    Other roles than the owner then delete nothing that is younger, whatever age they pass.
    """
    days = {relation: getattr(tx.settings, _SETTINGS[name]) for name, relation in _RELATIONS.items()}
    if not any(days.values()) or installed.is_made_by_mailglass(tx):
        return ""
    stored = _load_least_days(tx) if tx.has("mailglass_reconcile_retention") else {}
    return "".join(
        _STORE_LEAST_DAYS.replace("RELATION", relation).replace("DAYS", str(number))
        for relation, number in days.items()
        if number is not None and stored.get(relation) != number
    )


def delete_events(connected: OpenConnection, days: int) -> Iterator[tuple[int, int]]:
    """Delete events older than *days* that are linked, attached or expired: all events of a delivery, or none.

    Yield the number of deleted events after each committed batch, and that of expired ones that were kept, because a
    session was linking some. A batch scans some events and also deletes the other events of their deliveries.
    """
    size = connected.limits.retention_rows
    for page in _pages(connected, EVENTS, _PRUNE_EVENTS, days, size, {"after_id": NIL}):
        yield page["deleted"], page["kept"]


def delete_deliveries(connected: OpenConnection, days: int) -> Iterator[int]:
    """Delete deliveries older than *days* without events; yield the number of each batch."""
    start = {"after_tenant": "", "after_provider": "", "after_time": "-infinity", "after_id": NIL}
    for page in _pages(connected, DELIVERIES, _PRUNE_DELIVERIES, days, connected.limits.batch_rows, start):
        yield page["deleted"]


def _pages(
    connected: OpenConnection, name: str, statement: str, days: int, size: int, start: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    with connected.reading() as tx:
        if problem := find_problem(tx, name, days):
            raise DatabaseRefusedError(str(problem))
    yield from connected.in_pages(statement, start, {"days": days, "size": size})
