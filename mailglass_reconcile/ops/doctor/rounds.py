"""Groups of checks side by side, each with a deadline: a server that hangs costs its own group a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

from mailglass_reconcile.ops.doctor.finding import Finding, attempt, error

SECONDS = 8.0
"""What a group of checks may take; a group that talks to one server only is much faster."""

Group = Callable[[], Iterator[Finding]]


def run(groups: Mapping[str, Group], seconds: float = SECONDS) -> list[Finding]:
    """Return what the groups found, in their order; raises nothing that a check can cause.

    Args:
        groups: By the name of the check that is blamed if a group fails or does not end.
        seconds: A group that takes longer is left behind, with what it has found until then.
    """
    found: dict[str, list[Finding]] = {name: [] for name in groups}

    def work(name: str, group: Group) -> None:
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
        "look at the server's log and load, then ask again",
    )
