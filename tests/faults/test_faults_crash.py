"""The sweeping process is killed at the N-th system call to a server; one more sweep repairs everything."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import pytest

import mailglass_reconcile
import processes
from database import Database
from factories import insert_pairs
from faults.runs import FULL
from faults.tracing import may_trace, was_killed

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

Record = Callable[[str, object], None]
ORPHANS = 3
CALLS = (
    *("socket", "connect", "getsockname", "getsockopt", "setsockopt", "shutdown", "close"),
    *("poll", "epoll_ctl", "epoll_wait", "sendto", "recvfrom"),
)
"""What libpq and redis-py use; strace counts each of them by itself, in each thread by itself.

Not ioctl: of a server it is called by the thread that publishes alone, where the fail points are tried instead.
"""
SELECTION = {"sendto": (12, 17, 18, 24), "poll": (20,), "recvfrom": (22, 26)}
"""A few places within the batches, where not all are tried."""
SYSTEM_CALLS = [
    pytest.param(call, marks=pytest.mark.guard if call == "poll" else ()) for call in (CALLS if FULL else SELECTION)
]


def swept(db: Database, redis_url: str, *before: str, dies_at: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a sweep in a process of its own, under the command *before*."""
    more = {"MAILGLASS_BATCH_SIZE": "2", "PYTHONPATH": "tests", "SWEEPER_DIES_AT": str(dies_at)}
    command = [*before, sys.executable, "-m", "faults.sweeper"] if before else ["-m", "faults.sweeper"]
    return processes.run(command, {**db.environment(redis_url), **more})


def trace_sweep(db: Database, redis_url: str, call: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep under strace, which traces *call* only."""
    return swept(db, redis_url, "strace", "-f", "-qq", "-e", f"trace={call}", *options)


def first(db: Database, redis_url: str, call: str, log: Path) -> int:
    """Return the number of the first *call* of a sweep that is to a server rather than a file."""
    insert_pairs(db, ORPHANS)
    trace_sweep(db, redis_url, call, "-y", "-o", str(log))
    lines = log.read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if "socket:[" in line or call.startswith(("epoll", "poll")))


def count_repaired(db: Database, sweep: Callable[[int], bool], numbers: Iterable[int]) -> int:
    """Kill a sweep at each of *numbers*, sweep once more each time, and return how often it was killed."""
    kills = 0
    for number in numbers:
        before = db.count_links()
        insert_pairs(db, ORPHANS)
        hit = sweep(number)
        db.wait_until_alone()
        result = mailglass_reconcile.reconcile()
        assert result.status == "ok"
        assert db.count_links() == before + ORPHANS
        kills += hit
        if not hit:
            break
    assert kills
    return kills


@pytest.mark.skipif(not may_trace(), reason="strace is missing or may not trace")
@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_a_sweep_killed_at_any_call_is_repaired_by_the_next(
    db: Database, redis_url: str, call: str, tmp_path: Path, record_property: Record
) -> None:
    """It is killed at each N until it ends by itself, with three orphans in batches of two."""

    def sweep(number: int) -> bool:
        inject = f"inject={call}:signal=KILL:when={number}"
        return was_killed(trace_sweep(db, redis_url, call, "-o", "/dev/null", "-e", inject))

    numbers = count(first(db, redis_url, call, tmp_path / "log")) if FULL else SELECTION[call]
    kills = count_repaired(db, sweep, numbers)
    assert FULL or kills == len(SELECTION[call])
    record_property("fault", (f"killed at {call}", kills))


def test_a_sweep_killed_at_any_fail_point_is_repaired_by_the_next(
    db: Database, redis_url: str, record_property: Record
) -> None:
    """Fail points are around statements, COMMIT and publishing; this needs no strace."""

    def sweep(number: int) -> bool:
        return was_killed(swept(db, redis_url, dies_at=number))

    kills = count_repaired(db, sweep, count(1, 1 if FULL else 9))
    record_property("fault", ("killed at a fail point", kills))
