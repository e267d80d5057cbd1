"""The servers that the benchmark uses, their databases, and the processes that do the measured work."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
from psycopg import sql

from bench import statements
from bench.filling import fill
from mailglass_reconcile.testing.servers import Postgres

ROOT = Path(__file__).parent.parent
MAILGLASS_SCHEMA = ROOT / "tests" / "support" / "mailglass_schema.sql"

Tables = Literal["made here", "Mailglass's"]
"""Tables that `migrate` made, or those of a Mailglass that was there before."""
TABLES: tuple[Tables, ...] = ("made here", "Mailglass's")


class Worker:
    """A process that does what `bench.worker` can, with the package of one source tree."""

    def __init__(self, tree: Path, environment: dict[str, str]) -> None:
        """Start the process."""
        # With -P nothing but PYTHONPATH decides which mailglass_reconcile is imported.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.worker"],
            env=environment | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, action: str, **arguments: object) -> None:
        """Begin an action."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(json.dumps({"action": action, **arguments}) + "\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the action's result.

        Raises:
            SystemExit: The process has ended; it has printed why.
        """
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"a process of the benchmark ended with {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def run(self, action: str, **arguments: object) -> dict[str, Any]:
        """Do an action, and return its result."""
        self.start(action, **arguments)
        return self.result()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


class Testbed(ExitStack):
    """One PostgreSQL, one Redis-protocol server, and templates that each tree's `migrate` made."""

    def __init__(self, postgres: Postgres, redis_url: str, scale: int, against: str | None, other: Path | None) -> None:
        """Make the template databases; unless *scale* is 1, divide sizes by it, and measure one round, not five."""
        super().__init__()
        self.server, self.scale, self.against = postgres.url, scale, against
        self.rounds = 1 if scale > 1 else 5
        self.history: tuple[int, ...] = ()
        """Sizes of the part `growth`; empty if it chooses them."""
        self._data = postgres.directory / "data"
        self._environment = {**os.environ, "MAILGLASS_REDIS_URL": redis_url}
        self._trees = {"": ROOT} | ({"other ": other} if other else {})
        for side in self._trees:
            for tables in TABLES:
                url = self.copy("template1", f"{side}{tables}")
                if tables == "Mailglass's":
                    with psycopg.connect(url, autocommit=True) as connection:
                        connection.execute(MAILGLASS_SCHEMA.read_text())
                self.command(side, url, "migrate")
        self.command("", self.copy("made here", "by hand"), "migrate", "--remove", "--yes")

    def command(self, side: str, url: str, *arguments: str) -> None:
        """Run a command of a tree's package on a database."""
        environment = self._environment | {"MAILGLASS_DATABASE_URL": url, "PYTHONPATH": str(self._trees[side])}
        command = [sys.executable, "-P", "-m", "mailglass_reconcile", *arguments]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

    def worker(self, side: str = "", **settings: str) -> Worker:
        """Start a process with the package of this tree, or of the other commit, and settings of the package.

        It ends with this object.
        """
        worker = Worker(self._trees[side], self._environment | settings)
        self.callback(worker.close)
        return worker

    def scaled(self, size: int) -> int:
        """Return *size* divided by the scale of this run."""
        return max(2, size // self.scale)

    def copy(self, template: str, name: str = "run") -> str:
        """Create a database as a copy of *template*, replacing one of that name, and return its URL."""
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
            connection.execute("CHECKPOINT")
        return self.server.replace("/postgres?", f"/{name.replace(' ', '%20')}?")

    def postgres_cpu(self) -> float:
        """Return the CPU seconds of the server so far: its open sessions to the nanosecond, and those that ended."""
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        times, seconds = postmaster.cpu_times(), 0.0
        for child in postmaster.children():
            with suppress(FileNotFoundError):
                seconds += int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[0]) / 1e9
        return float(seconds + times.children_user + times.children_system)

    def describe(self) -> str:
        """Describe servers, interpreter and machine; its speed is that of one bare SQL statement at this moment."""
        messages = self.scaled(5_000)
        url = self.copy("made here", "speed")
        fill(url, deliveries=messages, messages=messages)
        rate = 2 * messages / statements.run_bare_statement(url)
        with psycopg.connect(self.server) as connection:
            version = connection.info.server_version
        return (
            f"PostgreSQL {version // 10_000}.{version % 10_000}, Python {platform.python_version()},"
            f" {os.cpu_count()} cores, bare SQL links {rate:,.0f} events/s"
            f" (load average {os.getloadavg()[0]:.1f} before)"
        )


@contextmanager
def other_commit(commit: str | None) -> Iterator[Path | None]:
    """Unpack the package of a commit into a temporary folder, and yield the folder; None without a commit.

    Raises:
        SystemExit: git does not know the commit.
    """
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mailglass-bench-") as directory:
        archive = ["git", "-C", str(ROOT), "archive", commit, "mailglass_reconcile", "alembic"]
        unpacked = subprocess.run(archive, stdout=subprocess.PIPE, check=False)
        if unpacked.returncode:
            raise SystemExit(f"git cannot unpack the package of {commit}")
        subprocess.run(["tar", "-x", "-C", directory], input=unpacked.stdout, check=True)
        yield Path(directory)
