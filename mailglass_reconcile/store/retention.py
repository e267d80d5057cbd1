"""Deleting old events and deliveries, through the functions that the tables' owner has made for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Connected, Transaction, in_schema, with_retries

EVENTS, DELIVERIES = schema.RETENTION
ARGUMENTS = "integer, integer, text, timestamp, bigint"

SETTINGS = "MAILGLASS_RETENTION_EVENTS_DAYS and MAILGLASS_RETENTION_DELIVERIES_DAYS"

# By the catalog, and not by a name that needs USAGE on the schema.
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


class Unusable(NamedTuple):
    """Why old rows cannot be deleted, and the step that cures it."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


def unusable(tx: Transaction, name: str = EVENTS) -> Unusable | None:
    """Return why this role cannot delete old rows by the function *name*, and what to do, or None if it can."""
    if schema.made_by_mailglass(tx):
        return Unusable(
            f"`migrate` did not make the tables of schema {tx.schema}, so no event is deleted", f"unset {SETTINGS}"
        )
    row = tx.execute(_FUNCTION, {"schema": tx.schema, "name": name}).one_or_none()
    if row is None:
        return Unusable(f"schema {tx.schema} has no function {name}", "run `mailglass-reconcile migrate`")
    if not row.may_call:
        function = in_schema(f"{{schema}}.{name}({ARGUMENTS})", tx.schema)
        grant = f"GRANT EXECUTE ON FUNCTION {function} TO {row.role}"
        return Unusable(f"role {row.role} lacks a privilege (SQLSTATE 42501)", grant)
    return None


def events(connected: Connected, days: int, size: int) -> Iterator[int]:
    """Delete events older than *days* that are linked, attached or expired: of each delivery all, or none.

    Yield how many each batch has deleted, when it is committed. A batch looks at *size* events, and deletes besides
    what belongs to the same deliveries.
    """
    return _batches(connected, EVENTS, _PRUNE_EVENTS, days, size)


def deliveries(connected: Connected, days: int, size: int) -> Iterator[int]:
    """Delete deliveries older than *days* that have no event left; yields and raises as `events`."""
    return _batches(connected, DELIVERIES, _PRUNE_DELIVERIES, days, size)


def _batches(connected: Connected, name: str, statement: str, days: int, size: int) -> Iterator[int]:
    with connected.reading() as tx:
        if reason := unusable(tx, name):
            raise DatabaseRefusedError(str(reason))
    place: dict[str, Any] = {"after_tenant": "", "after_time": "-infinity", "passed": 0}

    def batch() -> dict[str, Any]:
        with connected.writing() as tx:
            return dict(tx.execute(statement, {"days": days, "size": size, **place}).mappings().one())

    while place["after_tenant"] is not None:
        # Only the place of a batch that was committed is kept, so that it may be tried again.
        place = with_retries(batch)
        yield place.pop("deleted")
