"""A check looks at one thing and yields what it found: a level, one sentence, and the step that cures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

from mailglass_reconcile.errors import MailglassReconcileError, with_command_name
from mailglass_reconcile.ops import runs
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.rules.states import FindingStatus
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.store import comparison, handled_types, listing, outbox, privileges, reports, schema
from mailglass_reconcile.store.comparison import Difference
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.handled_types import Unseen
from mailglass_reconcile.store.listing import NewestGroup
from mailglass_reconcile.store.privileges import ComparedRole
from mailglass_reconcile.store.reports import Reports

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"
LEVELS = (OK, WARNING, ERROR)

Needs = Literal["nothing", "database", "redis", "celery"]

NEWEST_ORPHANS = 300
"""Open orphans that checks look at, the newest."""

AGAIN = "fix the other findings, then run `mailglass-reconcile doctor` again"


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        check: The check's name.
        status: `ok`, `warning` or `error`; with an error, links, broadcasts or handlers are lost or late.
        message: What was found, and if it is not well, why.
        remedy: The step that cures it; None if nothing has to be done.
        because: If one of these checks has an error, this finding is its effect, and is told with it.
    """

    check: str
    status: FindingStatus
    message: str
    remedy: str | None = None
    because: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The message with its remedy, as `status --check` and the page show them."""
        return self.message if self.remedy is None else f"{self.message}: {self.remedy}"

    def as_dict(self) -> dict[str, str | None]:
        """Return what `doctor --json` prints of it."""
        return {"check": self.check, "status": self.status, "message": self.message, "remedy": self.remedy}


def ok(message: str) -> Finding:
    """Return a finding of something that is well."""
    return Finding("", OK, with_command_name(message))


def warning(message: str, remedy: str, because: tuple[str, ...] = ()) -> Finding:
    """Return a finding that needs a look and costs no link."""
    return Finding("", WARNING, with_command_name(message), with_command_name(remedy), because)


def error(message: str, remedy: str, because: tuple[str, ...] = ()) -> Finding:
    """Return a finding by which links, broadcasts or handlers are lost or late."""
    return Finding("", ERROR, with_command_name(message), with_command_name(remedy), because)


READABLE = ("rights", "schema", "functions")
"""If one of these checks has an error, a later one may not be able to read what it needs."""


class Check(NamedTuple):
    """A check: its name, what it is given to look at, whether it is cheap, and how it looks.

    A cheap one reads catalogs, the history of runs and a bounded part of small tables.
    """

    name: str
    needs: Needs
    cheap: bool
    look: Callable[..., Iterable[Finding]]

    def findings(self, *given: Any) -> Iterator[Finding]:
        for one in self.look(*given):
            yield one._replace(check=self.name)

    def attempted(self, *given: Any) -> list[Finding]:
        """Return what it finds; if it fails itself, that is a finding."""
        found: list[Finding] = []
        because = READABLE if self.needs == "database" else ()
        try:
            for one in self.findings(*given):
                found.append(one)
        except MailglassReconcileError as fault:
            message, step = f"this could not be checked: {fault}", AGAIN
        except Exception as fault:  # one check that fails must not hide the others
            message, step = f"this could not be checked: {type(fault).__name__}", f"{AGAIN}; if it stays, report it"
        else:
            return found
        return [*found, error(message, step, because)._replace(check=self.name)]

    def within(self, given: AbstractContextManager[Any]) -> Check:
        """Return this check, made in the context that *given* opens, on what that yields."""

        def look() -> Iterator[Finding]:
            with given as opened:
                yield from self.look(opened)

        return self._replace(look=look)


def check(name: str, needs: Needs = "database", *, cheap: bool = False) -> Callable[[Callable[..., Any]], Check]:
    """Make a function the check *name*; checks of a module run in the order in which they stand there."""
    return lambda look: Check(name, needs, cheap, look)


@dataclass
class Look:
    """What a check of the database is given: a read-only transaction, and what the history of runs says."""

    tx: Transaction
    max_lag_seconds: float = LATE_SECONDS
    """What could be linked may have been open for so long; a full sweep has to succeed within two thirds of it."""
    thorough: bool = False
    """Whether the doctor looks, which runs with the rights of a sweeper."""

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
    def outbox(self) -> outbox.Facts:
        return outbox.facts(self.tx)

    @cached_property
    def unseen(self) -> list[Unseen]:
        """The handlers that no dispatcher has named for an hour."""
        return handled_types.unseen(self.tx)

    @cached_property
    def newest_orphans(self) -> list[NewestGroup]:
        """The newest open orphans, those that are alike together."""
        return listing.newest_groups(self.tx, NEWEST_ORPHANS)

    @cached_property
    def reports(self) -> list[Reports]:
        """The state of each provider's reports."""
        return reports.missing(self.tx)

    @cached_property
    def is_mailglass_s(self) -> bool:
        """Whether Mailglass's own migrations made the tables."""
        return schema.is_made_by_mailglass(self.tx)

    @property
    def has_triggers(self) -> bool:
        """Whether new orphans are noticed."""
        return not any(one.subject == "triggers" and one.is_grave for one in self.differences)

    @cached_property
    def differences(self) -> list[Difference]:
        """What is not in the schema as it shall be."""
        return comparison.compare(self.tx).differences


def merged(found: Iterable[Finding]) -> list[Finding]:
    """Return findings with one for each cause, the gravest first."""
    findings = list(found)
    wrong = {one.check for one in findings if one.status == ERROR}
    causes = {one.check: _cause(one, wrong) for one in findings if one.status == ERROR}

    def root(name: str) -> str:
        while (further := causes.get(name)) is not None:
            name = further
        return name

    kept: list[Finding] = []
    effects: dict[str, list[str]] = {}
    for one in findings:
        cause = None if one.status == OK else _cause(one, wrong)
        if cause is None:
            kept.append(one)
        elif one.status == ERROR:
            effects.setdefault(root(cause), []).append(one.message)
    for number, one in enumerate(kept):
        if one.status == ERROR and (its := effects.pop(one.check, None)):
            kept[number] = one._replace(message="; ".join([one.message, *its]))
    return sorted(kept, key=lambda one: -LEVELS.index(one.status))


def _cause(one: Finding, wrong: set[str]) -> str | None:
    return next((name for name in one.because if name in wrong), None)
