"""The daily prune: raw webhooks by status and age; the table of open orphans is repaired from the ledger."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.store import outbox, repair, runs, schema, webhook_events
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.runs import Origin, Run

BATCH_ROWS = 5_000


@dataclass(slots=True)
class PruneResult:
    """What a prune removed and repaired.

    Attributes:
        succeeded: Raw webhooks deleted that had succeeded.
        dead: Raw webhooks deleted that were dead.
        failed: Raw webhooks deleted that had failed.
        expired: Open orphans removed because they are older than the maximum age.
        settled: Open orphans removed because the ledger has them reconciled, or not at all.
        added: Orphans of the ledger that were missing and are open now.
        hooks_dispatched: Rows of the handlers' outbox deleted whose handlers were all done.
        hooks_dead: Rows of the handlers' outbox deleted that were dead; those that wait are kept.
    """

    succeeded: int = 0
    dead: int = 0
    failed: int = 0
    expired: int = 0
    settled: int = 0
    added: int = 0
    hooks_dispatched: int = 0
    hooks_dead: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the fields by name, as `prune --json` prints them and the task returns them."""
        return asdict(self)


def prune() -> PruneResult:
    """Delete raw webhooks by status and age, remove expired open orphans, and repair their table.

    Raises:
        MailglassReconcileError: A setting, the connection, a right or the schema is wrong.
    """
    return prune_with(runtime.database())


def prune_with(database: Database, origin: Origin = "python") -> PruneResult:
    """Delete what is old, repair the table of open orphans, and return the counts; each batch is a transaction.

    A retention of `infinity` sends no DELETE.

    Raises:
        SchemaOutdatedError: The database is not migrated; nothing was deleted.
        MailglassReconcileError: The database refused, or cannot be reached; earlier batches stay done.
    """
    settings = database.settings
    retention = {
        "succeeded": settings.retention_succeeded_days,
        "dead": settings.retention_dead_days,
        "failed": settings.retention_failed_days,
    }
    result = PruneResult()
    with database.connect() as connected:
        with connected.reading() as tx:
            schema.require_current(tx.execute(schema.READ_VERSION).scalar_one())
        for status, days in retention.items():
            if days is not None:
                bounds = {"status": status, "days": days, "size": BATCH_ROWS}
                setattr(result, status, connected.in_batches(webhook_events.DELETE_OLD, bounds))
        if settings.retention_succeeded_days is not None:
            bounds = {"days": settings.retention_succeeded_days, "size": BATCH_ROWS}
            result.hooks_dispatched = connected.in_batches(outbox.DELETE_DISPATCHED, bounds)
        if settings.retention_dead_days is not None:
            bounds = {"days": settings.retention_dead_days, "size": BATCH_ROWS}
            result.hooks_dead = connected.in_batches(outbox.DELETE_DEAD, bounds)
        expired = repair.remove_expired(connected, BATCH_ROWS)
        result.expired = expired.orphans
        result.settled = repair.remove_settled(connected, BATCH_ROWS)
        repair.remove_stray_ids(connected, BATCH_ROWS)
        result.added = repair.add_missing(connected, BATCH_ROWS)
        runs.fold(connected)
        with connected.writing() as tx:
            runs.add(
                tx,
                Run("prune", origin, counts={"expired": expired.orphans, "unmatched": expired.orphans - expired.named}),
            )
    telemetry.count_orphans({"expired": result.expired})
    return result
