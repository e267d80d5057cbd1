"""Servers of fault tests: a PostgreSQL that can be killed, and PgBouncer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing.servers import Postgres
from mailglass_reconcile.testing.servers import postgres_server as postgres
from waiting import PATIENCE

__all__ = ["PlainDatabase", "Postgres", "migrated_postgres", "pgbouncer", "pgbouncer_path", "postgres"]

PORT = 6432  # of a Unix socket in a directory of its own


@contextmanager
def migrated_postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL that may be stopped, whose database is migrated."""
    with postgres() as server:
        settings = Settings(database_url=server.url)
        runner.migrate(engines.create_engine(settings), settings, lambda line: None)
        yield server


class PlainDatabase:
    """The methods of a test's `db` that factories and tests call, for a database on such a server."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def value(self, sql: str) -> Any:
        """Return one value."""
        with self.engine.begin() as connection:
            return connection.exec_driver_sql(sql).scalar_one()


def pgbouncer_path() -> str | None:
    """Return the path of PgBouncer, which Debian puts beside the administrator's commands, or None."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def pgbouncer(database_url: str, connections: int) -> Iterator[str]:
    """Run PgBouncer in transaction mode with a number of server connections, and yield the URL through it.

    It listens on a Unix socket in a directory of mode 0700, because it requires no password.
    """
    url = make_url(database_url)
    path = pgbouncer_path()
    assert path is not None
    directory = Path(tempfile.mkdtemp(prefix="mailglass-pgbouncer-"))
    (directory / "users").write_text(f'"{url.username}" "{url.password or ""}"\n')
    (directory / "ini").write_text(
        f"""[databases]
* = host={url.query.get("host", url.host)} port={url.port or 5432} user={url.username}
[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = {directory}
auth_type = any
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 100
"""
    )
    user = None
    if os.geteuid() == 0:  # PgBouncer refuses to run as root, and only its owner may use the server's socket
        user = Path(str(url.query["host"])).owner() if "host" in url.query else "nobody"
        for entry in (directory, *directory.iterdir()):
            shutil.chown(entry, user)
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([path, str(directory / "ini")], user=user, stdout=log, stderr=log)
    try:
        _wait_for_socket(directory / f".s.PGSQL.{PORT}")
        through = url.set(host=None, port=PORT, query={"host": str(directory)})
        yield through.render_as_string(hide_password=False)
    finally:
        # SIGTERM would wait for clients to disconnect.
        process.send_signal(signal.SIGQUIT)
        process.wait(PATIENCE)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_socket(path: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not path.is_socket():
        assert time.monotonic() < deadline, f"nothing listens at {path}"
        time.sleep(0.02)
