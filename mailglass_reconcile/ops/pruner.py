"""The daily prune: raw webhooks by status and age, events and deliveries by age; the open orphans are repaired.

Its steps are independent: one that fails is reported, and the others run.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.errors import MailglassReconcileError, database_errors
from mailglass_reconcile.mailglass_compat import raw_webhooks
from mailglass_reconcile.rules.humanize import pluralize
from mailglass_reconcile.rules.matching import UNMATCHABLE, UNMATCHED
from mailglass_reconcile.rules.states import RunStatus
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import STATEMENT_TIMEOUT_MS, Database, OpenConnection, with_retries
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.tables import handler_jobs, refusals, repair, retention, runs
from mailglass_reconcile.store.tables.runs import Origin, Run
from mailglass_reconcile.sweep.reading import ChunkReader, match_slice

logger = logging.getLogger(__name__)

PruneStep = Callable[[OpenConnection], int]
"""One step of a prune; it commits its batches itself, and returns how many rows it removed or repaired."""


@dataclass(slots=True)
class PruneResult:
    """The rows that a prune deleted and repaired.

    Attributes:
        succeeded: Deleted raw webhooks that had succeeded.
        dead: Deleted raw webhooks that were dead.
        failed: Deleted raw webhooks that had failed.
        expired: Open orphans removed because they are older than the maximum age.
        settled: Open orphans removed because the ledger has them reconciled, or not at all.
        added: Orphans of the ledger that were missing and are open now.
        jobs_done: Deleted jobs of handlers that were done.
        jobs_dead: Deleted jobs of handlers that were dead; waiting ones are kept.
        events: Events deleted because of `retention_events_days`.
        deliveries: Deliveries deleted because of `retention_deliveries_days`.
        failures: The steps that failed, by name, each with its reason.
    """

    succeeded: int = 0
    dead: int = 0
    failed: int = 0
    expired: int = 0
    settled: int = 0
    added: int = 0
    jobs_done: int = 0
    jobs_dead: int = 0
    events: int = 0
    deliveries: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> RunStatus:
        """`ok`, or `partial` if a step failed."""
        return "partial" if self.failures else "ok"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `status` by name, as `prune --json` prints them and the task returns them."""
        return {**asdict(self), "status": self.status}


def prune() -> PruneResult:
    """Delete old rows, and repair the table of open events.

    A step that fails is logged and listed in `failures`; the others run.

    Raises:
        MailglassReconcileError: A setting, the connection or the schema is wrong; nothing was deleted.
    """
    return prune_with(runtime.database())


def prune_with(database: Database, origin: Origin = "python") -> PruneResult:
    """Delete old rows, repair the table of open orphans, and return the counts; each batch is a transaction.

    A retention of `infinity` sends no DELETE. On tables that Mailglass made, which deletes raw webhooks itself, those
    of a status are left alone unless its retention is set.
    """
    began = time.monotonic()
    runtime.load_imports(only_warn=True)
    with database.reading() as tx:
        installed.require_migrated(tx)
        made_by_mailglass = installed.is_made_by_mailglass(tx)
    prune_run = _Prune(database, made_by_mailglass=made_by_mailglass)
    prune_run.run()
    prune_run.add_to_history(origin, began)
    prune_run.log_failures()
    telemetry.count_orphans({"expired": prune_run.result.expired})
    return prune_run.result


def retention_days(settings: Settings, *, made_by_mailglass: bool) -> dict[str, int | None]:
    """Return the days after which each step deletes, by its name; None deletes nothing.

    On tables *made_by_mailglass*, raw webhooks of a status are deleted only if its retention is set, and events and
    deliveries never.
    """
    succeeded, dead = settings.retention_succeeded_days, settings.retention_dead_days
    webhooks = {"succeeded": succeeded, "dead": dead, "failed": settings.retention_failed_days}
    unset = {
        status
        for status in webhooks
        if made_by_mailglass and f"retention_{status}_days" not in settings.model_fields_set
    }
    return {
        **{status: None if status in unset else days for status, days in webhooks.items()},
        "jobs_done": succeeded,
        "jobs_dead": dead,
        "events": None if made_by_mailglass else settings.retention_events_days,
        "deliveries": None if made_by_mailglass else settings.retention_deliveries_days,
    }


class _Prune:
    """One prune of a database."""

    def __init__(self, database: Database, *, made_by_mailglass: bool) -> None:
        self._made_by_mailglass = made_by_mailglass
        self._database = database
        self._settings = database.settings
        self._expired_with_delivery = 0
        self._first_error: str | None = None
        self.result = PruneResult()

    def run(self) -> None:
        """Run all steps, each on a connection of its own, and add up their counts."""
        for name, step in self._steps():
            changed = self._run_step(name, step)
            if hasattr(self.result, name):
                setattr(self.result, name, getattr(self.result, name) + changed)

    def _steps(self) -> Iterator[tuple[str, PruneStep]]:
        """Yield the steps; one whose name is a field of the result is counted there."""
        days = retention_days(self._settings, made_by_mailglass=self._made_by_mailglass)
        for status in ("succeeded", "dead", "failed"):
            yield status, _make_delete_step(raw_webhooks.DELETE_OLD, days[status], status=status)
        for state in ("done", "dead"):
            yield f"jobs_{state}", _make_delete_step(handler_jobs.DELETE_OLD, days[f"jobs_{state}"], state=state)
        yield "expired", self._expire
        yield "added", repair.add_missing
        yield "settled", repair.remove_closed
        yield "ids", repair.remove_stray_ids
        yield "events", self._delete_events
        yield "deliveries", self._delete_deliveries
        yield "refusals", _make_delete_step(refusals.DELETE_OLD, refusals.RETENTION_DAYS)
        yield "history", runs.fold_old

    def _expire(self, connected: OpenConnection) -> int:
        """Remove expired orphans, and count those with a delivery; what no sweep has checked is matched for that."""
        # Counted as they go, here and below: what is committed counts even if a later batch fails.
        reader = ChunkReader(connected, lambda: STATEMENT_TIMEOUT_MS, lambda: False)
        for removed in repair.remove_expired(connected):
            self.result.expired += removed.orphans
            self._expired_with_delivery += removed.named
            matches = match_slice(reader, removed.without_keys, with_retries, of_any_age=True).matches
            self._expired_with_delivery += sum(match.result.state not in (UNMATCHED, UNMATCHABLE) for match in matches)
        return 0

    def _delete_events(self, connected: OpenConnection) -> int:
        if (days := self._settings.retention_events_days) is not None:
            all_kept = 0
            for deleted, kept in retention.delete_events(connected, days):
                self.result.events += deleted
                all_kept += kept
            if all_kept:
                kept_events = pluralize(all_kept, "expired event is", "expired events are")
                logger.warning("prune: %s left to the next prune: another session is linking some", kept_events)
        return 0

    def _delete_deliveries(self, connected: OpenConnection) -> int:
        if (days := self._settings.retention_deliveries_days) is not None:
            for deleted in retention.delete_deliveries(connected, days):
                self.result.deliveries += deleted
        return 0

    def _run_step(self, name: str, step: PruneStep) -> int:
        """Run one step, or store why it failed and return 0. Only an unreachable database ends the prune."""
        with self._database.connect() as connected:
            try:
                with database_errors():
                    try:
                        return step(connected)
                    except DBAPIError as error:
                        privileges.require_privileges(connected, error)
                        raise
            except MailglassReconcileError as error:
                self._first_error = self._first_error or type(error).__name__
                self.result.failures[name] = str(error)
        return 0

    def add_to_history(self, origin: Origin, began: float) -> None:
        """Add a row to the history of runs; if that fails, it is a failed step as well."""
        milliseconds = round((time.monotonic() - began) * 1000)
        run = Run(
            "prune",
            origin,
            status=self.result.status,
            counts={
                "expired": self.result.expired,
                "unmatched": self.result.expired - self._expired_with_delivery,
                "events": self.result.events,
                "deliveries": self.result.deliveries,
                "duration_ms": milliseconds,
            },
            error=self._first_error,
            began=began,
        )

        def add(connected: OpenConnection) -> int:
            with connected.writing() as tx:
                return runs.add(tx, run)

        self._run_step("history", add)

    def log_failures(self) -> None:
        """Log one line for each reason for which steps failed."""
        by_reason: dict[str, list[str]] = defaultdict(list)
        for name, reason in self.result.failures.items():
            by_reason[reason].append(name)
        for reason, names in by_reason.items():
            steps = "step" if len(names) == 1 else "steps"
            logger.error("prune: %s %s failed, and the others ran: %s", steps, ", ".join(names), reason)


def _make_delete_step(statement: str, days: int | None, **parameters: str) -> PruneStep:
    """Make a step that deletes rows older than *days* in batches; with None it deletes nothing."""

    def delete(connected: OpenConnection) -> int:
        if days is None:
            return 0
        return connected.in_batches(statement, {"days": days, **parameters})

    return delete
