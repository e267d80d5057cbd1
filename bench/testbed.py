"""The servers that the benchmark uses, their databases, and the processes that it starts."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from mailglass_reconcile.testing.servers import Postgres


class Testbed:
    """One PostgreSQL and one Redis-protocol server.

    Sizes and pauses are divided by `scale`; medians are over `rounds` runs.
    """

    def __init__(self, postgres: Postgres, redis_url: str, scale: int) -> None:
        """Create the template databases: `migrated` has Mailglass's tables and ours, `bare` only Mailglass's."""
        self.postgres, self.redis_url, self.scale = postgres, redis_url, scale
        self.server, self.rounds = postgres.url, 1 if scale > 1 else 3
        os.environ["MAILGLASS_REDIS_URL"] = redis_url
        url = self.copy("template1", "migrated")
        self.run_to_its_end(url, "-m", "mailglass_reconcile", "migrate")
        self.run_to_its_end(self.copy("migrated", "bare"), "-m", "mailglass_reconcile", "migrate", "--remove", "--yes")

    def scaled(self, size: int) -> int:
        """Return *size* divided by the scale of this run."""
        return max(2, size // self.scale)

    def copy(self, template: str, name: str = "run") -> str:
        """Create a database as a copy of *template*, and return its URL; drop an existing one of that name."""
        self.drop(name)
        with psycopg.connect(self.server, autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
            connection.execute("CHECKPOINT")
        return self.server.replace("/postgres?", f"/{name}?")

    def drop(self, *names: str) -> None:
        """Drop databases if they exist."""
        with psycopg.connect(self.server, autocommit=True) as connection:
            for name in names:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def environment(self, url: str) -> dict[str, str]:
        """Return the environment of a process that uses the database of *url*."""
        return {**os.environ, "MAILGLASS_DATABASE_URL": url}

    def run_to_its_end(self, url: str, *arguments: str, **settings: str) -> str:
        """Run a Python program on the database of *url* to its end, and return its output."""
        environment = self.environment(url) | settings
        process = subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return process.stdout

    @contextmanager
    def running(self, url: str, *arguments: str) -> Iterator[int]:
        """Run a Python program while the block runs, and yield its process id.

        Raises:
            SystemExit: The program ended earlier.
        """
        directory = Path(tempfile.mkdtemp(prefix="mailglass-bench-"))
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment(url), stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process.pid
        finally:
            has_ended = process.poll() is not None
            process.terminate()
            process.wait(20)
            last_line = (directory / "log").read_text(errors="replace").strip().rpartition("\n")[2]
            shutil.rmtree(directory)
            if has_ended:
                raise SystemExit(f"python {' '.join(arguments)} ended by itself: {last_line}")

    def sweep(self, url: str, *options: str) -> dict[str, Any]:
        """Run one `bench.sweep_process`, and return its figures."""
        return self.sweeps(url, options)[0]

    def sweeps(self, url: str, *processes: Sequence[str], **settings: str) -> list[dict[str, Any]]:
        """Sweep in several processes at the same time.

        Args:
            url: The database.
            processes: The options of `bench.sweep_process`, for each process.
            settings: Further environment variables, for all of them.

        Returns:
            The figures of each process.
        """
        environment = self.environment(url) | settings
        command = [sys.executable, "-m", "bench.sweep_process"]
        children = [
            subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True)
            for options in processes
        ]
        return [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]

    def about(self, bare_rate: float) -> str:
        """Describe servers, interpreter and machine, whose speed is *bare_rate*: events a second of bare SQL."""
        with psycopg.connect(self.server) as connection:
            version = connection.info.server_version
        return (
            f"PostgreSQL {version // 10_000}.{version % 10_000}, Python {platform.python_version()},"
            f" {os.cpu_count()} cores, bare SQL links {bare_rate:,.0f} events/s"
            f" (load average {os.getloadavg()[0]:.1f} before)"
        )


def vacuum(url: str) -> None:
    """Vacuum and analyze a database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
