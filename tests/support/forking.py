"""Python in a process of its own, without the seconds that imports take: forked from one that has done them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SECONDS = 60
PROGRAM = (Path(__file__).parent / "forker.py").read_text()
OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "LD_")
"""Beginnings of the variables that a process reads when it starts; what forks can follow `PYTHONPATH` alone."""

IMPORTED = (
    *(f"mailglass_reconcile.cli.{name}" for name in ("doctor", "explain", "prune", "status", "sweep")),
    *("celery.bin.celery", "celery.apps.beat", "celery.apps.worker", "celery.app.amqp", "celery.app.control"),
    *("celery.app.events", "celery.app.log", "celery.backends.redis", "celery.loaders.app", "celery.fixups.django"),
    *("celery.concurrency.prefork", "celery.concurrency.solo", "celery.concurrency.thread", "celery.events.state"),
    *("celery.worker.autoscale", "celery.worker.components", "celery.worker.consumer", "celery.worker.strategy"),
    *("mailglass_reconcile.singleton.task", "mailglass_reconcile.sweep.ranges", "mailglass_reconcile.sweep.recent"),
    *("mailglass_reconcile.ops.pruner", "kombu.transport.redis", "psycopg", "redis.sentinel"),
    "sqlalchemy.dialects.postgresql.psycopg",
)
"""What is there already: nothing that makes an app or a task, or reads settings, which a process does itself."""
MAIN = ("-c", "from mailglass_reconcile.cli import main; main()")

helpers: set[int] = set()
"""The process that forks, once there is one: no test has left it behind."""


class Forked:
    """A process that was forked, with what callers use of `subprocess.Popen`."""

    def __init__(self, ended: int) -> None:
        """Wait until it is there; its id can be read from *ended*, and at its end its exit code."""
        self._ended = os.fdopen(ended, "rb", 0)
        self.returncode: int | None = None
        self.pid = int(b"".join(iter(lambda: self._ended.read(1), b" ")))

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code at most so many seconds."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with self._ended:
                self.returncode = int(self._ended.readall())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* in this environment and folder, and return what it did, within 60 seconds."""
    return python(environment, *MAIN, *arguments)


def python(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python, as `run` runs the command, with `-c` or `-m` as the first of its arguments."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, Path(os.devnull).open() as nothing:
        files = (nothing.fileno(), output.fileno(), errors.fileno())
        process = start(environment, *arguments, files=files)
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess([sys.executable, *arguments], code, *texts)


def start(
    environment: Mapping[str, str],
    *arguments: str,
    files: tuple[int, int, int],
    directory: Path | None = None,
    session: bool = False,
    forked: bool = True,
) -> Forked | subprocess.Popen[bytes]:
    """Start Python with *arguments*, as `python` does, with these three files.

    Args:
        environment: Of the process. If an interpreter is set up otherwise there, it is started, and not forked.
        arguments: The first is `-c` or `-m`.
        files: Input, output and errors.
        directory: By default this process's.
        session: Whether it gets a session of its own.
        forked: Whether it is forked; else it is started.
    """
    directory = directory or Path.cwd()
    if not forked or _of_the_interpreter(environment) != _forker()[1]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(environment), cwd=directory, start_new_session=session,
            stdin=files[0], stdout=files[1], stderr=files[2],
        )  # fmt: skip
    request = {
        "arguments": arguments,
        "environment": dict(environment),
        "directory": str(directory),
        "session": session,
    }
    ended, other = os.pipe()
    socket.send_fds(_forker()[0], [json.dumps(request).encode()], [*files, other])
    os.close(other)
    return Forked(ended)


@cache
def _forker() -> tuple[socket.socket, dict[str, str]]:
    """Return a connection to the process that forks, and the interpreter's variables that it started with."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(its.fileno()), *IMPORTED],
            env={**os.environ, "PYTHONPATH": ""},
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    helpers.add(process.pid)
    return ours, _of_the_interpreter(os.environ)


def _of_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    followed = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return {name: value for name, value in followed.items() if name.startswith(OF_THE_INTERPRETER)}
