"""What a check found: its name, whether it is well, the cause in words, and a step that fixes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from mailglass_reconcile.errors import MailglassReconcileError, hint
from mailglass_reconcile.rules.states import FindingStatus

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"


class Finding(NamedTuple):
    """One line of the doctor's report.

    Attributes:
        check: The name of the check; it does not change between versions.
        status: `ok`, `warning` or `error`; an error means that links or broadcasts are lost or late.
        message: What was found, and if it is not well, why.
        remedy: A step that fixes it; None if nothing has to be done.
    """

    check: str
    status: FindingStatus
    message: str
    remedy: str | None = None


def ok(check: str, message: str) -> Finding:
    """Return a finding of something that is well."""
    return Finding(check, OK, hint(message))


def warning(check: str, message: str, remedy: str) -> Finding:
    """Return a finding of something that needs a look, but costs no link."""
    return Finding(check, WARNING, hint(message), hint(remedy))


def error(check: str, message: str, remedy: str) -> Finding:
    """Return a finding of something by which links or broadcasts are lost or late."""
    return Finding(check, ERROR, hint(message), hint(remedy))


def attempt(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what *look* finds; if it fails itself, that is a finding of *check*."""
    try:
        yield from look()
    except MailglassReconcileError as fault:
        yield error(check, f"this could not be checked: {fault}", "fix the other findings first, then ask again")
    except Exception as fault:  # one check that fails must not hide the others
        yield error(
            check,
            f"this could not be checked: {type(fault).__name__}",
            "fix the other findings first, then ask again; if it stays, report it with the version",
        )
