"""The CPU seconds of each process, as the kernel counts them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import redis

if TYPE_CHECKING:
    from bench.testbed import Testbed


def tree_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of all that it has started, those that have ended included."""
    process = psutil.Process(pid)
    return sum(_seconds(child) for child in [process, *process.children(recursive=True)])


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        times = process.cpu_times()
        # The finer clock omits threads that have ended, so it serves Postgres only, whose backends have one.
        own_seconds = backend_seconds(process.pid) if process.name() == "postgres" else times.user + times.system
        return float(own_seconds + times.children_user + times.children_system)
    return 0.0


def backend_seconds(pid: int) -> float:
    """Return the CPU seconds of one Postgres backend, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def servers(testbed: Testbed) -> dict[str, int]:
    """Return the process ids of the two servers."""
    with redis.Redis.from_url(testbed.redis_url) as client:
        redis_pid = int(client.info("server")["process_id"])
    postmaster = testbed.postgres.directory / "data" / "postmaster.pid"
    return {"Postgres": int(postmaster.read_text().split()[0]), "Redis": redis_pid}


def writers_seconds(server: str) -> float:
    """Return the CPU seconds of the load generator's backends so far."""
    with psycopg.connect(server) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'load'").fetchall()
    return sum(backend_seconds(pid) for (pid,) in rows)


class Meter:
    """The CPU seconds that process trees spent while the block ran, by name; this process itself is `subscriber`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """Watch the trees of *pids*."""
        self._pids = dict(pids)
        self.seconds: dict[str, float] = {}
        self.wall = 0.0

    def __enter__(self) -> Meter:
        """Begin to count."""
        self._before, self._began = self._now(), time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting."""
        self.wall = time.monotonic() - self._began
        self.seconds = {name: seconds - self._before[name] for name, seconds in self._now().items()}

    def cores(self) -> str:
        """Return in words how many cores were used, and by what, most first."""
        shares = sorted(((spent / self.wall, name) for name, spent in self.seconds.items()), reverse=True)
        by = ", ".join(f"{name} {share:.2f}" for share, name in shares if share >= 0.01)
        return f"{sum(share for share, _ in shares):.2f} of {os.cpu_count()} cores: {by}"

    def _now(self) -> dict[str, float]:
        return {name: tree_seconds(pid) for name, pid in self._pids.items()} | {"subscriber": time.process_time()}
