"""Work that is killed, or loses its connection, at any place: nothing is half done, and the next run does the rest."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

import processes
from database import Database
from faults import killable, proxy
from faults.proxy import COMMIT, Fault
from faults.works import (
    KILLED,
    Erase,
    FailedJobs,
    Follow,
    HandlersOnDjango,
    HandlersOnEngine,
    NewJobs,
    Prune,
    Sweep,
    Work,
    killable_process,
)
from marking import nightly_unless

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.version_independent, pytest.mark.timeout(1_500)]


def count_kills(
    work: Work, kill_at: Callable[[int], bool], run: Callable[[], object], numbers: Iterable[int]
) -> tuple[int, bool]:
    """Kill work at each of *numbers* until it ends before; let *run* finish it each time.

    Return the number of kills, and whether one was between two rows, if there are two.
    """
    kills = kills_amid = 0
    for number in numbers:
        work.plant(run)
        planted = work.count_remaining()
        is_killed = kill_at(number)
        work.db.wait_until_alone()
        work.check()
        kills += is_killed
        kills_amid += 0 < work.count_remaining() < planted
        work.finish(run)
        if not is_killed:
            break
    return kills, bool(kills_amid) or planted == 1


class Killed(NamedTuple):
    """Where work is killed.

    Attributes:
        work: What is killed.
        points: The fail points.
        least: How often it must be killed there.
    """

    work: type[Work]
    points: Iterable[int] = range(1, 1_000)
    least: int = 40


SELECTED = (Killed(Sweep, range(1, 1_000, 4), 3), Killed(NewJobs, range(1, 1_000, 20), 3))
"""Some of their points are between two rows."""
EVERYWHERE = (
    Killed(Sweep),
    Killed(Follow, range(1, 90), 89),  # it never ends by itself
    Killed(NewJobs, least=60),
    Killed(FailedJobs),
    Killed(Prune),
    Killed(Erase),
)


@pytest.mark.parametrize(
    "killed",
    [
        *(pytest.param(killed, id=killed.work.__name__) for killed in SELECTED),
        *(
            pytest.param(killed, id=f"{killed.work.__name__} everywhere", marks=pytest.mark.nightly)
            for killed in EVERYWHERE
        ),
    ],
)
def test_work_killed_at_any_fail_point_is_finished_by_the_next_run(
    handler_db: Database, redis_url: str, killed: Killed
) -> None:
    work = killed.work(handler_db)
    with killable_process(handler_db, redis_url, work.name, **work.variables) as process:

        def run() -> None:
            assert process.run() == 0

        kills, is_amid = count_kills(work, lambda number: process.run(DIES_AT=number) == KILLED, run, killed.points)
    assert is_amid, "never killed between two rows"
    assert kills >= killed.least


CALLS = (
    *("socket", "connect", "getsockname", "getsockopt", "setsockopt", "shutdown", "close"),
    *("poll", "epoll_ctl", "epoll_wait", "sendto", "recvfrom"),
)
"""What libpq and redis-py use; strace counts each of them by itself, in each thread by itself.

Not ioctl: of a server it is called by the thread that publishes alone, where the fail points are tried instead.
"""
IN_CI = ("sendto", "poll", "recvfrom")


@cache
def may_trace() -> bool:
    """Return True if strace exists and may trace."""
    path = shutil.which("strace")
    return path is not None and subprocess.run([path, "-f", "-o", "/dev/null", "true"], check=False).returncode == 0


def is_killed_under_strace(work: Work, redis_url: str, call: str, *options: str) -> bool:
    """Work once under strace, which traces *call* only."""
    strace = ["strace", "-f", "-qq", "-e", f"trace={call}", *options]
    environment = {**work.db.environment(redis_url), **work.variables, "PYTHONPATH": "tests"}
    result = processes.run([*strace, sys.executable, "-m", "faults.killable", work.name, "{}"], environment)
    assert result.returncode in (0, KILLED, 128 - KILLED), result.stderr
    return result.returncode != 0


def find_numbers(work: Work, redis_url: str, call: str, log: Path, *, everywhere: bool) -> Iterable[int]:
    """Return the numbers of the *calls* to a server, or without *everywhere* two that are between batches."""
    work.plant(work.run)
    is_killed_under_strace(work, redis_url, call, "-y", "-o", str(log))
    lines = [line for line in log.read_text().splitlines() if "resumed>" not in line]
    if everywhere:
        return count(next(n for n, line in enumerate(lines, 1) if "socket:[" in line or "poll" in call))
    calls_of_main_thread = sum(line.split()[0] == lines[0].split()[0] for line in lines)
    return (calls_of_main_thread * 80 // 100, calls_of_main_thread * 85 // 100)


@pytest.mark.skipif(not may_trace(), reason="strace is missing or may not trace")
@pytest.mark.parametrize(
    ("call", "everywhere"),
    nightly_unless(
        lambda variant: not variant[1], [(call, False) for call in IN_CI] + [(call, True) for call in CALLS]
    ),
)
def test_a_sweep_killed_at_any_system_call_is_finished_by_the_next(
    db: Database, redis_url: str, call: str, everywhere: bool, tmp_path: Path
) -> None:
    work = Sweep(db)

    def kill_at(number: int) -> bool:
        inject = f"inject={call}:signal=KILL:when={number}"
        return is_killed_under_strace(work, redis_url, call, "-o", "/dev/null", "-e", inject)

    numbers = find_numbers(work, redis_url, call, tmp_path / "log", everywhere=everywhere)
    kills, is_amid = count_kills(work, kill_at, work.run, numbers)
    # The other calls belong to the ends of a connection: some are made once.
    assert is_amid or call not in IN_CI, "never killed between two rows"
    assert kills >= (2 if call in IN_CI else 1)


OUTCOMES: dict[type[Work], tuple[str, str]] = {
    Sweep: (r"\.{6,}", r"\.{6,}"),  # the batch is retried
    # The first COMMIT registers the handlers. Before each job one claims it, and records the end of the last one:
    # only the error shows that it was lost.
    HandlersOnEngine: (r"R(RF){6}R\.+", r"R(R\.){6}R\.+"),
    HandlersOnDjango: (r"R(RF){6}R\.+", r"R(R\.){6}R\.+"),
    Prune: (r"RF+[.F]*\.", r"RF+[.F]*\."),  # the step fails, and the others run; a repair tries again by itself
    Erase: (r"R{6,}\.", r"R{6,}\."),
}
"""The `Outcome`s of work whose N-th COMMIT is lost before the server gets it, and after, for each N until the last."""


class Loss(NamedTuple):
    """Where a connection is lost.

    Attributes:
        work: What loses it.
        fault: Before or after the server gets the message.
        text: What the message has.
        outcomes: A pattern of the outcomes.
    """

    work: type[Work]
    fault: Fault
    text: bytes
    outcomes: str


LOSSES = {
    f"{work.__name__} {fault} {place}": Loss(work, fault, text, pattern)
    for work, patterns in OUTCOMES.items()
    for fault, expected in (("before", patterns[0]), ("after", patterns[1]))
    for place, text, pattern in (("COMMIT", COMMIT, expected), ("a message", b"", r"[.FR]{3,}"))
}
MARKS = {"Sweep after COMMIT": pytest.mark.guard, "HandlersOnEngine after COMMIT": ()}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS.get(name, pytest.mark.nightly)) for name in LOSSES],
)
def test_work_whose_connection_is_lost_at_any_message_is_finished_by_the_next_run(
    handler_db: Database,
    request: pytest.FixtureRequest,
    set_limits: Callable[..., None],
    name: str,
) -> None:
    """If only the response to a COMMIT is lost, what it committed is not repeated."""
    loss = LOSSES[name]
    for fixture in loss.work.fixtures:
        request.getfixturevalue(fixture)
    set_limits(**killable.BATCHES)
    work, outcomes = loss.work(handler_db), []
    for number in count(1):
        work.plant(work.run)
        with proxy.postgres_proxy(handler_db.url) as (through, url), work.connected_to(url):
            through.arm(loss.text, loss.fault, number)
            outcomes.append(work.attempt(loss.fault))
        handler_db.wait_until_alone()
        work.check()
        work.finish(work.run)
        if not through.dropped:
            break
    assert re.fullmatch(loss.outcomes, "".join(outcomes)), outcomes
    assert not work.calls_repeated or (loss.fault, loss.text) != ("after", COMMIT)
