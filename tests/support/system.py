"""A running system for planted faults: servers, a worker and a beat with the documented roles."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

import commands
import granting
import mailglass_reconcile
from database import Database
from installation import Site
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers
from mailglass_reconcile.testing.plugin import FAST
from processes import Process
from waiting import wait_until

MAX_LAG = "6s"
"""A full sweep has to succeed within two thirds of it; beat asks for one each second."""
PATIENCE = 90
"""A lock that a killed worker leaves behind lapses within 60 seconds."""
RANK = (OK, WARNING, ERROR)

HANDLERS = """
import os
from mailglass_reconcile import on_event

@on_event("bounced", name="reacts")
def reacts(connection, event):
    if os.path.exists({flag!r}):
        raise RuntimeError("broken")
"""

RULE = """
from mailglass_reconcile import key_rule

@key_rule("acme", reads=("metadata/its/id",))
def ids(id_):
    return [id_]
"""


class System:
    """An installation whose worker and beat run; `admin` is the database for its owner."""

    def __init__(self, admin: Database, role_url: str, redis_url: str, folder: Path, full: Path) -> None:
        """Prepare the system without starting it. *full* is a file that can fill the database's disk, if there is
        one.
        """
        self.admin = admin
        self.full = full
        self.broken_handler = folder / "broken"
        (folder / "reacting.py").write_text(HANDLERS.format(flag=str(self.broken_handler)))
        (folder / "acmes_rule.py").write_text(RULE)
        settings = Settings(database_url=role_url, redis_url=redis_url)  # type: ignore[arg-type]
        log = folder / "log"
        log.touch()
        as_role = Database(role_url, settings, engines.create_engine(settings), admin.witness)
        self.site = Site(as_role, redis_url, log)
        self.site.environment["PYTHONPATH"] += os.pathsep + str(folder)
        self.site.environment |= {
            "MAILGLASS_IMPORTS": "worker,reacting",
            "WORKER_SWEEP_SECONDS": "1",
        }
        self._running: dict[str, ExitStack] = {}
        self._worker: Process

    def start(self, *names: str) -> None:
        """Start the worker, or beat."""
        for name in names:
            stack = self._running[name] = ExitStack()
            if name == "worker":
                self._worker = stack.enter_context(self.site.worker(app="worker", pool="solo", until="READY"))
            else:
                arguments = ("beat", "-s", str(self.site.log.parent / "beat"), "--pidfile=", "-l", "info")
                stack.enter_context(self.site.celery(*arguments, app="worker", until="beat: St"))

    def stop_worker(self) -> None:
        """Stop the worker as a supervisor does: it ends its sweep, and leaves no lock."""
        self._worker.stop()
        self.kill("worker")

    def kill(self, *names: str) -> None:
        """Kill the worker or beat, and its children."""
        for name in names:
            self._running.pop(name, ExitStack()).close()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command in the worker's environment."""
        return commands.run_forked(self.site.db, *arguments, **{**self.site.environment, **environment})

    def start_all(self) -> None:
        """Start the worker and beat, and wait until everything is healthy."""
        self.start("worker", "beat")
        mailglass_reconcile.configure(engine=self.site.db.engine, settings=self.site.db.settings)
        wait_until(self.is_healthy, PATIENCE)

    def doctor(self) -> dict[str, dict[str, Any]]:
        """Return the worst finding of each check."""
        result = self.run("doctor", "--json")
        assert result.stdout, result.stderr
        by_check: dict[str, dict[str, Any]] = {}
        for finding in json.loads(result.stdout)["findings"]:
            previous = by_check.setdefault(finding["check"], finding)
            if RANK.index(finding["status"]) > RANK.index(previous["status"]):
                by_check[finding["check"]] = finding
        assert result.returncode == int(any(finding["status"] == ERROR for finding in by_check.values()))
        return by_check

    def check_status(self) -> str:
        """Return the line of `status --check`."""
        result = commands.run_here("status", "--check", "--max-lag", MAX_LAG)
        assert result.exit_code == int(result.output.startswith("unhealthy")), result.output
        return result.output

    def is_healthy(self) -> bool:
        """Return True if `status --check` finds no problem."""
        return self.check_status().startswith("healthy")

    def close(self) -> None:
        """Stop everything."""
        self.kill("worker", "beat")
        self.site.close()


@contextmanager
def running_system(folder: Path) -> Iterator[System]:
    """Yield a system on a small disk, whose processes have the documented roles; *folder* has its files.

    Autovacuum is off, because it removes a file that new connections need and that cannot be written on a full disk.
    """
    options = (*FAST, "autovacuum=off")
    with (
        servers.postgres_server(*options) as server,
        servers.redis() as redis_url,
        small_disk(server.directory) as disk,
    ):
        where = "TABLESPACE small" if disk else ""
        with psycopg.connect(server.url, autocommit=True) as connection:
            if disk:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            connection.execute(f"CREATE DATABASE app TEMPLATE template0 ENCODING utf8 {where}")
            connection.execute("CREATE ROLE mail LOGIN")
        url = server.url.replace("/postgres?", "/app?")
        settings = Settings(database_url=url)
        admin = Database(url, settings, engines.create_engine(settings), None)
        runner.migrate(admin.engine, settings, lambda line: None)
        for documented in ("mailglass_sweeper", "mailglass_dispatcher"):
            for statement in granting.STATEMENTS[documented]:
                admin.run(statement.replace(documented, "mail"))
        created = System(admin, url.replace("postgres@", "mail@"), redis_url, folder, disk and disk / "filling")
        try:
            created.start_all()
            yield created
        finally:
            created.close()
            mailglass_reconcile.configure()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a disk of 48 MB for the server of *folder*, if this process may mount."""
    disk = folder / "small"
    disk.mkdir()
    options = f"size=48m,mode=0700,uid={folder.stat().st_uid},gid={folder.stat().st_gid}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    try:
        yield None if mounted.returncode else disk
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
