"""The command in a process of its own, without the second that importing it takes: forked from one that has done so."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

SECONDS = 60
PROGRAM = (Path(__file__).parent / "forker.py").read_text()
OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "TZ", "LD_")
"""Beginnings of the variables that a process reads when it starts."""

helpers: set[int] = set()
"""The process that forks, once there is one: no test has left it behind."""


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* in this environment and folder, and return what it did, within 60 seconds."""
    if not _same_interpreter(environment):
        return _started(environment, *arguments)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, Path(os.devnull).open() as nothing:
        code = begin(environment, *arguments, files=(nothing.fileno(), output.fileno(), errors.fileno()))()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["mailglass-reconcile", *arguments], code, *texts)


def begin(environment: Mapping[str, str], *arguments: str, files: tuple[int, int, int]) -> Callable[[], int]:
    """Start the command with these three files, and return a function that waits for its exit code."""
    assert _same_interpreter(environment), "the process that forks has other settings of the interpreter"
    request = {"arguments": arguments, "environment": dict(environment), "directory": str(Path.cwd())}
    ended, other = os.pipe()
    socket.send_fds(_forker()[0], [json.dumps(request).encode()], [*files, other])
    os.close(other)

    def code() -> int:
        with os.fdopen(ended, "rb", 0):
            return _exit_code(ended, arguments)

    return code


def _same_interpreter(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter that starts with *environment* is set up as the process that forks is."""
    return _of_the_interpreter(environment) == _forker()[1]


@cache
def _forker() -> tuple[socket.socket, dict[str, str]]:
    """Return a connection to the process that forks, and the interpreter's variables that it started with."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    helpers.add(process.pid)
    return ours, _of_the_interpreter(os.environ)


def _of_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OF_THE_INTERPRETER)}


def _exit_code(ending: int, arguments: tuple[str, ...]) -> int:
    """Return the exit code, which comes after the process's id."""
    said = b""
    while select.select([ending], [], [], SECONDS)[0]:
        piece = os.read(ending, 100)
        if not piece:
            return int(said.split()[1])
        said += piece
    os.kill(int(said.split()[0]), signal.SIGKILL)
    raise subprocess.TimeoutExpired(["mailglass-reconcile", *arguments], SECONDS)


def _started(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from mailglass_reconcile.cli import main; main()", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
