"""What this role may do in the database, and who else may put something in the place of ours."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.store import privileges
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.retention import DELIVERIES, EVENTS, unusable


def rights(tx: Transaction) -> Iterator[Finding]:
    """Check that this role may sweep and prune, and that no row is hidden from it."""
    lacks = privileges.lacking(tx)
    if lacks is None:
        return  # the check of the schema says so
    if lacks.rights or not lacks.usage:
        named = [] if lacks.usage else [f"USAGE on schema {lacks.schema}"]
        named += [f"{right} on {table}" for table, right in lacks.rights]
        yield error(
            "rights",
            f"role {lacks.role} cannot sweep and prune: it lacks {'; '.join(named)}"
            " (a role that only reads needs less: run doctor as the worker's role)",
            lacks.grants(),
        )
    elif not lacks.hidden:
        yield ok("rights", f"role {lacks.role} may sweep and prune")
    if lacks.hidden:
        yield error(
            "rights",
            f"row level security of {', '.join(lacks.hidden)} would hide rows from role {lacks.role},"
            " so Postgres refuses every sweep",
            f"ALTER ROLE {lacks.role} BYPASSRLS",
        )


def retention(tx: Transaction) -> Iterator[Finding]:
    """Check that this role may delete old events and deliveries, if a retention is set; the first reason is enough."""
    functions = {EVENTS: tx.settings.retention_events_days, DELIVERIES: tx.settings.retention_deliveries_days}
    for (function, days), rows in zip(functions.items(), ("events", "deliveries"), strict=True):
        if days is not None and (reason := unusable(tx, function)):
            sentence, _, step = reason.rpartition(": ")
            yield error("rights", f"the prune cannot delete old {rows}: {sentence}", step.replace("run GRANT", "GRANT"))
            return


def others(tx: Transaction) -> Iterator[Finding]:
    """Check that no other role may create objects in the schemas that are searched: a function in place of another."""
    for sentence in (found := privileges.warnings(tx)):
        message, _, rest = sentence.partition(": REVOKE ")
        yield warning("creators", message, f"REVOKE {rest}")
    if not found:
        yield ok("creators", f"no other role may create objects in schema {tx.schema} or on this role's search_path")
