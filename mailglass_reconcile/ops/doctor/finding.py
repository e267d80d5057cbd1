"""What a check found: its name, whether it is well, the cause in words, a step that fixes it; and how checks run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from mailglass_reconcile.errors import MailglassReconcileError, hint
from mailglass_reconcile.rules.states import FindingStatus

Check = Callable[[], "Iterable[Finding]"]

SECONDS = 8.0
"""What a group of checks may take; a group that talks to one server only is much faster."""

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


def attempt(check: str, look: Check) -> Iterator[Finding]:
    """Yield what *look* finds; if it fails itself, that is a finding of *check*."""
    try:
        yield from look()
    except MailglassReconcileError as fault:
        yield error(check, f"this could not be checked: {fault}", "fix the other findings, then run the doctor again")
    except Exception as fault:  # one check that fails must not hide the others
        yield error(
            check,
            f"this could not be checked: {type(fault).__name__}",
            "fix the other findings, then run the doctor again; if it stays, report it with the version",
        )


def side_by_side(groups: Mapping[str, Check], seconds: float = SECONDS) -> list[Finding]:
    """Return what groups of checks found, in their order: a server that hangs costs its own group some seconds.

    Args:
        groups: By the name of the check that is blamed if a group fails or does not end.
        seconds: A group that takes longer is left behind, with what it has found until then.
    """
    found: dict[str, list[Finding]] = {name: [] for name in groups}

    def work(name: str, group: Check) -> None:
        for one in attempt(name, group):
            found[name].append(one)

    threads = {
        name: threading.Thread(target=work, args=(name, group), daemon=True, name=f"doctor {name}")
        for name, group in groups.items()
    }
    deadline = time.monotonic() + seconds
    for thread in threads.values():
        thread.start()
    report: list[Finding] = []
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        report += list(found[name])
        if thread.is_alive():
            report.append(_late(name, seconds))
    return report


def _late(name: str, seconds: float) -> Finding:
    return error(
        name,
        f"these checks did not end within {seconds:g} s: the server hangs, is overloaded, or is slow to reach",
        "look at the server's log and load, then run the doctor again",
    )
