"""Delete old events and deliveries, through the retention functions of the tables' owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Connected, Transaction, in_schema, with_retries

EVENTS, DELIVERIES = schema.RETENTION
ARGUMENTS = "integer, integer, text, timestamp, bigint"

SETTINGS = "MAILGLASS_RETENTION_EVENTS_DAYS and MAILGLASS_RETENTION_DELIVERIES_DAYS"

# From the catalog, because a regprocedure needs USAGE on the schema.
_FUNCTION = """
SELECT quote_ident(current_user) AS role, has_function_privilege(p.oid, 'EXECUTE') AS may_call
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema AND p.proname = :name
"""

_PRUNE_EVENTS = """
SELECT after_tenant, after_time::text AS after_time, passed, deleted
  FROM {schema}.mailglass_prune_events(CAST(:days AS integer), CAST(:size AS integer), CAST(:after_tenant AS text),
                                       CAST(:after_time AS timestamp), CAST(:passed AS bigint))
"""
_PRUNE_DELIVERIES = """
SELECT after_tenant, after_time::text AS after_time, passed, deleted
  FROM {schema}.mailglass_prune_deliveries(CAST(:days AS integer), CAST(:size AS integer), CAST(:after_tenant AS text),
                                           CAST(:after_time AS timestamp), CAST(:passed AS bigint))
"""


class RetentionProblem(NamedTuple):
    """The reason why old rows cannot be deleted, and its remedy."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


def find_problem(tx: Transaction, name: str = EVENTS) -> RetentionProblem | None:
    """Return the problem that keeps this role from deleting old rows with the function *name*, or None."""
    if schema.is_made_by_mailglass(tx):
        return RetentionProblem(
            f"`migrate` did not make the tables of schema {tx.schema}, so no event is deleted", f"unset {SETTINGS}"
        )
    row = tx.execute(_FUNCTION, {"schema": tx.schema, "name": name}).one_or_none()
    if row is None:
        return RetentionProblem(f"schema {tx.schema} has no function {name}", "run `mailglass-reconcile migrate`")
    if not row.may_call:
        function = in_schema(f"{{schema}}.{name}({ARGUMENTS})", tx.schema)
        grant = f"GRANT EXECUTE ON FUNCTION {function} TO {row.role}"
        return RetentionProblem(f"role {row.role} lacks a privilege (SQLSTATE 42501)", grant)
    return None


def delete_events(connected: Connected, days: int, size: int) -> Iterator[int]:
    """Delete events older than *days* that are linked, attached or expired: all events of a delivery, or none.

    Yield the number of deleted events after each committed batch. A batch scans *size* events and also deletes the
    other events of their deliveries.
    """
    return _batches(connected, EVENTS, _PRUNE_EVENTS, days, size)


def delete_deliveries(connected: Connected, days: int, size: int) -> Iterator[int]:
    """Delete deliveries older than *days* without events; yields and raises as `delete_events` does."""
    return _batches(connected, DELIVERIES, _PRUNE_DELIVERIES, days, size)


def _batches(connected: Connected, name: str, statement: str, days: int, size: int) -> Iterator[int]:
    with connected.reading() as tx:
        if problem := find_problem(tx, name):
            raise DatabaseRefusedError(str(problem))
    cursor: dict[str, Any] = {"after_tenant": "", "after_time": "-infinity", "passed": 0}

    def delete_batch() -> dict[str, Any]:
        with connected.writing() as tx:
            return dict(tx.execute(statement, {"days": days, "size": size, **cursor}).mappings().one())

    while cursor["after_tenant"] is not None:
        # The cursor moves after the commit, so that a failed batch can be retried.
        cursor = with_retries(delete_batch)
        yield cursor.pop("deleted")
