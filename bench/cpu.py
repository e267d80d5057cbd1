"""What each process costs, as the kernel counts it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import redis

from mailglass_reconcile.testing.postgres import Postgres


def tree_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of all that it has started, those that have ended included."""
    process = psutil.Process(pid)
    return sum(_seconds(each) for each in [process, *process.children(recursive=True)])


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        times = process.cpu_times()
        # Of a process with several threads, the finer clock leaves out those that have ended.
        own = backend_seconds(process.pid) if process.name() == "postgres" else times.user + times.system
        return float(own + times.children_user + times.children_system)
    return 0.0


def backend_seconds(pid: int) -> float:
    """Return the CPU seconds of one Postgres backend, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def postgres_pid(server: Postgres) -> int:
    """Return the process id of a running server."""
    return int((server.directory / "data" / "postmaster.pid").read_text().split()[0])


def redis_pid(url: str) -> int:
    """Return the process id of a Redis-protocol server."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def writers_seconds(server: str) -> float:
    """Return the CPU seconds of the load generator's backends so far."""
    with psycopg.connect(server) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'load'").fetchall()
    return sum(backend_seconds(pid) for (pid,) in rows)


class Meter:
    """The CPU seconds that process trees spent while the block ran, by name; this process itself is `subscriber`.

    `idle` and `waiting` are how many of the machine's cores did nothing, and waited for the disk.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        """Watch the trees of *pids*."""
        self._pids = dict(pids)
        self.seconds: dict[str, float] = {}
        self.wall = self.idle = self.waiting = 0.0

    def __enter__(self) -> Meter:
        """Begin to count."""
        self._before, self._began = self._now(), time.monotonic()
        self._machine = psutil.cpu_times()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting."""
        self.wall = time.monotonic() - self._began
        self.seconds = {name: seconds - self._before[name] for name, seconds in self._now().items()}
        then, now = self._machine, psutil.cpu_times()
        self.idle = (now.idle - then.idle) / self.wall
        self.waiting = (now.iowait - then.iowait) / self.wall

    def words(self) -> str:
        """Say how many cores were used, by whom, most first, and what the rest of the machine did."""
        shares = sorted(((spent / self.wall, name) for name, spent in self.seconds.items()), reverse=True)
        whom = ", ".join(f"{name} {share:.2f}" for share, name in shares if share >= 0.01)
        used, cores = sum(share for share, _ in shares), os.cpu_count() or 1
        others = max(0.0, cores - used - self.idle - self.waiting)
        return (
            f"{used:.2f} of {cores} cores: {whom}; others {others:.2f}, waiting for the disk {self.waiting:.2f},"
            f" idle {self.idle:.2f}"
        )

    def cores(self) -> float:
        """Return how many cores the processes used."""
        return sum(self.seconds.values()) / self.wall

    def _now(self) -> dict[str, float]:
        return {name: tree_seconds(pid) for name, pid in self._pids.items()} | {"subscriber": time.process_time()}
