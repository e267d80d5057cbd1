"""The definition of a check: a function that yields findings, each with a level, a message and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

from mailglass_reconcile.errors import MailglassReconcileError, SchemaOutdatedError, docs_url, with_local_names
from mailglass_reconcile.ops import lock_holders, runs
from mailglass_reconcile.ops.lock_holders import LockHolder
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.rules.states import FindingStatus
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.migration import privileges
from mailglass_reconcile.store.migration.comparison import Comparison, Difference, compare
from mailglass_reconcile.store.migration.privileges import ComparedRole
from mailglass_reconcile.store.queries import orphan_lists, provider_reports, selection
from mailglass_reconcile.store.queries.orphan_lists import NewestGroup
from mailglass_reconcile.store.queries.provider_reports import ProviderReports
from mailglass_reconcile.store.queries.selection import NewerOrphans
from mailglass_reconcile.store.tables import handler_jobs

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"
LEVELS = (OK, WARNING, ERROR)

Needs = Literal["nothing", "database", "redis", "celery"]

NEWEST_ORPHANS = 300
"""The number of newest open orphans that checks read."""

RUN_AGAIN = "fix the other findings, then run `mailglass-reconcile doctor` again"


class Finding(NamedTuple):
    """The result of a check.

    Attributes:
        check: The check's name.
        status: `ok`, `warning` or `error`; with an error, links, broadcasts or handlers are lost or late.
        message: The result and, if it is a problem, its cause.
        remedy: The step that solves the problem; None if there is none.
        because: If one of these checks has an error, this finding is its effect, and is merged into it.
        is_unchecked: The check could not be made; then a warning of those checks is a cause, too.
    """

    check: str
    status: FindingStatus
    message: str
    remedy: str | None = None
    because: tuple[str, ...] = ()
    is_unchecked: bool = False

    @property
    def sentence(self) -> str:
        """The check's name, a heading of docs/doctor.md, and the message with its remedy, as `status` shows them."""
        return ": ".join(filter(None, (self.check, self.message, self.remedy)))

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields by name, as `doctor --json` prints them."""
        return {"check": self.check, "status": self.status, "message": self.message, "remedy": self.remedy}


def ok(message: str) -> Finding:
    """Return a finding that nothing is wrong."""
    return Finding("", OK, with_local_names(message))


def warning(message: str, remedy: str, because: tuple[str, ...] = ()) -> Finding:
    """Return a finding about a problem of some events only, or that will become an error."""
    return Finding("", WARNING, with_local_names(message), with_local_names(remedy), because)


def error(message: str, remedy: str, because: tuple[str, ...] = ()) -> Finding:
    """Return a finding that links, broadcasts or handlers are lost or late."""
    return Finding("", ERROR, with_local_names(message), with_local_names(remedy), because)


NEEDED_BY_ALL = ("privileges", "schema", "functions")
"""If one of these checks has an error, later checks cannot read the database, and none of them runs."""


SCHEMA_CHECKS = ("schema", "indexes", "functions")
"""The checks whose problems may explain that a statement of another check lacks a table, a column or a function."""

HINDRANCES: Mapping[str, tuple[str, ...]] = {
    "celery": ("redis", "redis_privileges", "lock_privileges", "broker", "worker", "queues")
}
"""By what a check needs: the checks before it whose problems may be the reason why it cannot be made."""


class Check(NamedTuple):
    """A check: its name, what it needs, whether it is fast, and the function that yields its findings.

    A fast one reads catalogs, the history of runs and a bounded part of small tables.
    """

    name: str
    needs: Needs
    is_fast: bool
    run: Callable[..., Iterable[Finding]]

    def findings(self, *arguments: Any) -> Iterator[Finding]:
        for finding in self.run(*arguments):
            yield finding._replace(check=self.name)

    def attempt(self, *arguments: Any) -> list[Finding]:
        """Return the findings; a check that fails returns a finding about its error."""
        findings: list[Finding] = []
        is_schema_fault = False
        try:
            for finding in self.findings(*arguments):
                findings.append(finding)
        except MailglassReconcileError as fault:
            message, step = f"this could not be checked: {fault}", RUN_AGAIN
            is_schema_fault = isinstance(fault, SchemaOutdatedError)
        except Exception as fault:  # one check that fails must not hide the others
            message, step = f"this could not be checked: {type(fault).__name__}", f"{RUN_AGAIN}; if it stays, report it"
            if type(fault).__name__ == "NoPermissionError":
                step = f"allow the broker's user what Celery needs: {docs_url('celery.md#permissions-of-a-redis-user')}"
        else:
            return findings
        because = SCHEMA_CHECKS if is_schema_fault else HINDRANCES.get(self.needs, ())
        unchecked = error(message, step, because)
        return [*findings, unchecked._replace(check=self.name, is_unchecked=True)]

    def in_context(self, manager: AbstractContextManager[Any]) -> Check:
        """Return this check with the value of *manager* as its argument; it is opened when the check runs."""

        def run() -> Iterator[Finding]:
            with manager as value:
                yield from self.run(value)

        return self._replace(run=run)


def check(name: str, needs: Needs = "database", *, fast: bool = False) -> Callable[[Callable[..., Any]], Check]:
    """Register a function as the check *name*; the checks of a module run in the order of their definitions."""
    return lambda run: Check(name, needs, fast, run)


@dataclass
class CheckContext:
    """The argument of a database check: a read-only transaction, and cached results that several checks share."""

    tx: Transaction
    max_lag_seconds: float = LATE_SECONDS
    """Seconds that a linkable event may wait; a full sweep has to succeed within two thirds of this time."""
    is_full: bool = False
    """True if the doctor runs the check, with the privileges of a sweeper."""

    @cached_property
    def roles(self) -> list[ComparedRole]:
        """This session's role, and the documented roles that are used here."""
        return privileges.roles_to_compare(self.tx)

    @property
    def current_role(self) -> ComparedRole:
        """This session's role."""
        return next(role for role in self.roles if role.is_current)

    @cached_property
    def history(self) -> RunHistory:
        return runs.load_history(self.tx)

    @cached_property
    def newer(self) -> NewerOrphans:
        """What has arrived after the window of the full sweep that counted last."""
        return selection.load_newer(self.tx, self.history.covered_until)

    @property
    def lag_seconds(self) -> float:
        """Seconds for which the oldest open orphan could have been linked, left by a sweep or newer; 0 without one."""
        return max(self.history.lag_seconds, self.newer.lag_seconds)

    @cached_property
    def late_holder(self) -> LockHolder | None:
        """The session that holds up the oldest event that could be linked."""
        lag = self.history.lag_seconds
        return lock_holders.find_holder_of_late(self.tx, lag) if lag else None

    @cached_property
    def outbox(self) -> handler_jobs.Facts:
        return handler_jobs.load_facts(self.tx)

    @cached_property
    def newest_orphans(self) -> list[NewestGroup]:
        """The newest open orphans, grouped."""
        return orphan_lists.load_newest_groups(self.tx, NEWEST_ORPHANS)

    @cached_property
    def reports(self) -> list[ProviderReports]:
        """The state of each provider's reports."""
        return provider_reports.load_reports(self.tx)

    @cached_property
    def is_made_by_mailglass(self) -> bool:
        """Return True if Mailglass's own migrations made the tables."""
        return installed.is_made_by_mailglass(self.tx)

    @property
    def has_triggers(self) -> bool:
        """Return True if the triggers notice new orphans."""
        return not any(difference.subject == "triggers" and difference.is_grave for difference in self.differences)

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison of the schema with its definition."""
        return compare(self.tx)

    @property
    def differences(self) -> list[Difference]:
        """The differences between the schema and its definition."""
        return self.comparison.differences


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Return one finding for each cause, the most severe first; of *findings*, causes come before their effects."""
    merged: list[Finding] = []
    errors: dict[str, int] = {}
    problems: dict[str, int] = {}
    """For each check with an error, or also a warning: the position of its cause in *merged*, or its own."""
    unchecked: dict[str, int] = {}
    """For each message of a check that could not run: the position of its cause, or the first one's own."""
    for finding in findings:
        positions = problems if finding.is_unchecked else errors
        position = next((positions[name] for name in finding.because if name in positions), None)
        if position is None and finding.is_unchecked:  # several checks may have the same error
            position = unchecked.get(finding.message)
        if finding.status == OK or position is None:
            position = len(merged)
            merged.append(finding)
        elif finding.status == ERROR:
            merged[position] = _with_effect(merged[position], finding)
        if finding.is_unchecked:
            unchecked.setdefault(finding.message, position)
        if finding.status == ERROR:
            errors.setdefault(finding.check, position)
        if finding.status != OK:
            problems.setdefault(finding.check, position)
    return sorted(merged, key=lambda finding: -LEVELS.index(finding.status))


def _with_effect(cause: Finding, effect: Finding) -> Finding:
    """Return a cause with the message of an error that it explains; of several checks with one message, it has one."""
    is_told = effect.message in cause.message
    return cause._replace(status=ERROR, message=cause.message if is_told else f"{cause.message}; {effect.message}")
