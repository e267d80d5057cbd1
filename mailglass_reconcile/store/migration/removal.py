"""What a database holds of ours that a removal would lose."""

from __future__ import annotations

from mailglass_reconcile.rules.humanize import counted
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.migration import state

MAILGLASS = ("mailglass_deliveries", "mailglass_events", "mailglass_webhook_events")

DROP_TABLES = """
DROP TABLE {schema}.mailglass_deliveries, {schema}.mailglass_events, {schema}.mailglass_webhook_events;
DROP FUNCTION IF EXISTS {schema}.mailglass_raise_immutability();
"""
"""Without CASCADE: what an application has built on them stops it."""

_OPEN = "SELECT count(*) AS orphans, count(recipient) AS recipients FROM {schema}.mailglass_open_orphans"
_OUTBOX = """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead
  FROM {schema}.mailglass_handler_outbox
"""
_RUNS = "SELECT count(*) FROM {schema}.mailglass_reconcile_runs"


def losses(tx: Transaction, *, tables: bool = False) -> list[str]:
    """Return a line each for what is pending, what a removal loses, and what it leaves behind.

    With *tables*, it leaves nothing.
    """
    there = set(state.tables_in(tx, tx.schema))

    def has(table: str) -> bool:
        return any(name.endswith(f".{table}") for name in there)

    orphans, recipients = tx.execute(_OPEN).one() if has("mailglass_open_orphans") else (0, 0)
    waiting, dead = tx.execute(_OUTBOX).one() if has("mailglass_handler_outbox") else (0, 0)
    runs = tx.execute(_RUNS).scalar_one() if has("mailglass_reconcile_runs") else 0
    lines = [
        f"will stay unlinked: {counted(orphans, 'open orphan')}; waiting jobs of handlers: {waiting:,};"
        f" dead ones: {dead:,}",
        f"lost: recipients of {counted(recipients, 'open orphan')}, which the ledger does not have;"
        f" a history of {counted(runs, 'run')}; every GRANT on our tables",
    ]
    names = ", ".join(tx.name_of(name) for name in MAILGLASS)
    if tables:
        return [*lines, f"dropped for good: {names}, with every row"]
    if schema.made_by_mailglass(tx):
        return [*lines, f"stays: Mailglass's tables with every row ({names})"]
    return [
        *lines,
        f"stays: {names}, with every row, recipients included."
        " To drop them too, for good: `mailglass-reconcile migrate --remove --tables`",
    ]
