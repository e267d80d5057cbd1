"""The servers that a benchmark runs on, the databases on them, and sweeps in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench import data
from mailglass_reconcile import Settings
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner


class Machine:
    """One PostgreSQL and one Redis-protocol server; every size of the benchmark is divided by `scale`."""

    def __init__(self, server: str, redis_url: str, scale: int) -> None:
        """Use the servers of these two URLs; the first is a superuser's."""
        self.server, self.redis_url, self.scale = server, redis_url, scale

    def migrated(self, name: str) -> str:
        """Return the URL of a new database with Mailglass's tables and ours."""
        url = data.database(self.server, name)
        settings = Settings(database_url=url)
        runner.migrate(create_engine(settings), settings, lambda line: None)
        return url

    def copy(self, template: str, name: str = "run") -> str:
        """Return the URL of a new database that is a copy of *template*."""
        return data.database(self.server, name, template)

    def environment(self, url: str) -> dict[str, str]:
        """Return this process's environment with the settings that lead to the database of *url*."""
        return {**os.environ, "MAILGLASS_DATABASE_URL": url, "MAILGLASS_REDIS_URL": self.redis_url}

    def sweep(self, url: str, *options: str) -> dict[str, Any]:
        """Sweep in a process of its own, and return what it printed."""
        return self.sweeps(url, options)[0]

    def sweeps(self, url: str, *processes: Sequence[str], **settings: str) -> list[dict[str, Any]]:
        """Sweep in several processes at once, each with its options, and return what each of them printed.

        Args:
            url: The database.
            processes: The options of `bench.sweep`, for each process.
            settings: Further environment variables, for all of them.
        """
        environment = self.environment(url) | settings
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.sweep", *options], env=environment, stdout=subprocess.PIPE, text=True
            )
            for options in processes
        ]
        return [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
