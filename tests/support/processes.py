"""Run our command, Celery or any other program in a process of its own, until a condition holds or it ends.

Python is forked from a process that has imported what it needs, which saves the seconds that imports take.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import psutil

from waiting import PATIENCE, wait_until

PROGRAM = (Path(__file__).parent / "forker.py").read_text()
CLIENT = (Path(__file__).parent / "forked_program.py").read_text()
COMMANDS = ("alembic", "celery", "django-admin", "flask", "mailglass-reconcile", "python", "python3", "uvicorn")
"""Programs of an environment that can be forked in place of a shell's command, if they are installed."""
INTERPRETER_VARIABLES = ("PYTHON", "LC_", "LANG", "LD_")
"""Prefixes of the variables that an interpreter reads at its start."""
FOLLOWED = ("PYTHONPATH", "PYTHONUNBUFFERED")
"""The variables of these that a forked process can still apply."""

_CELERY = (
    *("celery.bin.celery", "celery.apps.beat", "celery.apps.worker", "celery.app.amqp", "celery.app.control"),
    *("celery.app.events", "celery.app.log", "celery.backends.redis", "celery.loaders.app", "celery.fixups.django"),
    *("celery.concurrency.prefork", "celery.concurrency.solo", "celery.concurrency.thread", "celery.events.state"),
    *("celery.worker.autoscale", "celery.worker.components", "celery.worker.consumer", "celery.worker.strategy"),
    *("mailglass_reconcile.singleton.task", "kombu.transport.redis"),
)
_SERVERS = ("mailglass_reconcile.receiver.app", "mailglass_reconcile.server", "mailglass_reconcile.web.app")
IMPORTED = (
    *(f"mailglass_reconcile.cli.{name}" for name in ("doctor", "explain", "prune", "status", "sweep")),
    *("mailglass_reconcile.sweep.ranges", "mailglass_reconcile.sweep.recent", "mailglass_reconcile.ops.pruner"),
    *("psycopg", "redis.sentinel", "sqlalchemy.dialects.postgresql.psycopg"),
    *(f"celery|demo|bench={name}" for name in _CELERY),
    *(f"receive|serve|demo|bench={name}" for name in (*_SERVERS, "cryptography.x509", "sqlalchemy.orm")),
    "migrate|demo|bench=mailglass_reconcile.store.migration.runner",
)
"""Modules that create no app, task or settings when they are imported: each process must create its own.

A module after words, as in `WORD|WORD=MODULE`, is imported before the first process with one of them in an argument.
"""
FRAMEWORKS = (
    *("anymail.urls", "django.contrib.admin", "django.core.handlers.wsgi", "django.core.management"),
    *("django.core.servers.basehttp", "django.db.backends.postgresql.base", "django.test", "fastapi", "flask"),
    *("botocore.auth", "requests", "svix"),
)
"""Further modules that applications on a web framework import."""
COMMAND = ("-c", "from mailglass_reconcile.cli import main; main()")

helpers: set[int] = set()
"""The ids of the processes that fork; they outlive the tests."""

Condition = str | re.Pattern[str] | int | Path | Callable[[], object]
"""A text or pattern in the output, a port that accepts connections, a file that exists, or a function."""


class Forked:
    """A forked process, with the part of the interface of `subprocess.Popen` that `Process` uses."""

    def __init__(self, connection: socket.socket) -> None:
        """Read the process id from the connection to its parent, which later sends the exit code."""
        self._connection = connection
        self.returncode: int | None = None
        self.pid = int(connection.recv(20))

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait at most *timeout* seconds for the exit code, and return it."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with self._connection:
                self.returncode = int(self._connection.recv(20))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


class Process:
    """A process and its output so far."""

    def __init__(self, output: IO[bytes], errors: IO[bytes], stdin: IO[str] | None) -> None:
        """Take the files for its output, which may be the same one, and its input if that is a pipe."""
        self._files = {"stdout": (output, _size(output)), "stderr": (errors, _size(errors))}
        self._texts: dict[str, str] = {}
        self._stdin, self._lines_read = stdin, 0
        self._handle: Forked | subprocess.Popen[bytes]

    def begin(self, handle: Forked | subprocess.Popen[bytes]) -> None:
        """Set the handle of the started process."""
        self._handle = handle

    @property
    def pid(self) -> int:
        """The process id."""
        return self._handle.pid

    @property
    def stdout(self) -> str:
        """The standard output so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        """The standard error so far."""
        return self._read("stderr")

    @property
    def output(self) -> str:
        """The standard output followed by the standard error."""
        is_one_file = self._files["stdout"][0] is self._files["stderr"][0]
        return self.stdout if is_one_file else self.stdout + self.stderr

    def _read(self, name: str) -> str:
        if name in self._texts:
            return self._texts[name]
        file, start = self._files[name]
        return os.pread(file.fileno(), 1 << 26, start).decode(errors="replace")

    def write_line(self, line: object) -> None:
        """Write a line to the standard input."""
        assert self._stdin is not None
        print(line, file=self._stdin, flush=True)

    def read_line(self) -> str:
        """Wait for the next line on standard output, and return it without its end."""
        self.wait_for(lambda: self.stdout.count("\n") > self._lines_read)
        self._lines_read += 1
        return self.stdout.split("\n")[self._lines_read - 1]

    def close(self) -> None:
        """Keep the output, and close the files."""
        self._texts = {name: self._read(name) for name in self._files}
        for file, _ in self._files.values():
            file.close()

    def family(self) -> list[psutil.Process]:
        """Return the process and its descendants, with the forked process in place of each `forked_program`."""
        return _family(self.pid)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._handle.poll()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until the process ends, and return the exit code."""
        return self._handle.wait(seconds)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        self._handle.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Close the standard input if it is a pipe, or send a signal; wait, and return the exit code."""
        if self._stdin is None:
            self.send_signal(number)
        else:
            self._stdin.close()
        return self.wait()

    def wait_for(self, condition: Condition, seconds: float = PATIENCE) -> Any:
        """Wait until a condition holds, and return its value: for a pattern, the match; fail if the process ends."""
        check, value = self._check(condition), None

        def holds_or_ended() -> bool:
            nonlocal value
            value = check()
            return bool(value) or self.poll() is not None

        wait_until(holds_or_ended, seconds)
        value = value or check()
        assert value, f"the process has ended with {self.poll()}\n{self.output}"
        return value

    def _check(self, condition: Condition) -> Callable[[], object]:
        if isinstance(condition, str):
            return lambda: condition in self.output
        if isinstance(condition, re.Pattern):
            return lambda: condition.search(self.output)
        if isinstance(condition, int):
            return lambda: _accepts(condition)
        return condition.exists if isinstance(condition, Path) else condition

    def kill(self) -> None:
        """Kill the process and its descendants, and wait until they have ended."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait()
        wait_until(lambda: not any(_runs(process) for process in family))


@contextmanager
def start(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    until: Condition | None = None,
    exit_code: int | None = None,
    log: Path | None = None,
    cwd: Path | None = None,
    forked: bool | Forker = True,
    session: bool = False,
    stdin: bool = False,
    files: Mapping[str, int] | None = None,
) -> Iterator[Process]:
    """Start a program, wait for a condition, and run the block; at the end, kill the program and its descendants.

    Args:
        arguments: The program and its arguments; those of Python if the first begins with a dash, such as
            `[*COMMAND, "sweep"]` or `["-m", "celery"]`.
        environment: By default this process's.
        until: A `Condition`; it is an error if the process ends before it holds.
        exit_code: If set, a process that runs at the end of the block gets SIGTERM, and must exit with this code.
        log: A file to which the output is appended, instead of two of its own.
        cwd: By default this process's.
        forked: True if Python may be forked, which it is unless *environment* sets up the interpreter differently;
            or the process to fork it from.
        session: True if the process gets a session of its own.
        stdin: True if its input is a pipe, for `write_line`; at the end it is closed instead of sending SIGTERM.
        files: Descriptors for `stdin`, `stdout` and `stderr`, instead of /dev/null and temporary files.
    """
    environment = dict(os.environ if environment is None else environment)
    with ExitStack() as stack:
        if log:
            output = errors = log.open("a+b")
        else:
            output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        null = stack.enter_context(Path(os.devnull).open())
        streams = {"stdin": null.fileno(), "stdout": output.fileno(), "stderr": errors.fileno(), **(files or {})}
        pipe = None
        if stdin:
            streams["stdin"], writing = os.pipe()
            stack.callback(os.close, streams["stdin"])
            pipe = stack.enter_context(os.fdopen(writing, "w"))
        process = Process(output, errors, pipe)
        stack.callback(process.close)
        origin = _find_origin(arguments, environment, forked)
        execute = partial(_fork, origin) if origin else _execute
        process.begin(execute(arguments, environment, streams, cwd or Path.cwd(), session))
        stack.callback(process.kill)
        if until is not None:
            process.wait_for(until)
        yield process
        if exit_code is not None and process.poll() is None:
            code = process.stop()
            assert code == exit_code, (code, process.output)


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    stdin: str | None = None,
    cwd: Path | None = None,
    forked: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program, as `start` does, with a text as its input, to its end within 90 seconds; return its result."""
    with tempfile.TemporaryFile() as input_file:
        input_file.write((stdin or "").encode())
        input_file.seek(0)
        files = {} if stdin is None else {"stdin": input_file.fileno()}
        with start(arguments, environment, cwd=cwd, forked=forked, files=files) as process:
            code = process.wait()
            return subprocess.CompletedProcess(list(arguments), code, process.stdout, process.stderr)


def _execute(
    arguments: Sequence[str], environment: Mapping[str, str], streams: Mapping[str, int], cwd: Path, session: bool
) -> subprocess.Popen[bytes]:
    program = [sys.executable, *arguments] if arguments[0].startswith("-") else list(arguments)
    # A child inherits SIG_IGN, which a shell sets for its background processes.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(program, env=environment, cwd=cwd, start_new_session=session, **streams)  # type: ignore[call-overload, no-any-return]
    finally:
        signal.signal(signal.SIGINT, before)


def _fork(
    origin: Forker,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    streams: Mapping[str, int],
    cwd: Path,
    session: bool,
) -> Forked:
    request = {"arguments": arguments, "environment": environment, "directory": str(cwd), "session": session}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(origin.address)
    files = [streams["stdin"], streams["stdout"], streams["stderr"]]
    socket.send_fds(connection, [json.dumps(request).encode()], files)
    return Forked(connection)


def _find_origin(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    forked: bool | Forker,
) -> Forker | None:
    """Return the process to fork these arguments from, or None if they must be executed."""
    if not forked or arguments[0] not in ("-c", "-m"):
        return None
    origin = forked if isinstance(forked, Forker) else forker()
    return origin if _interpreter_variables(environment) == origin.variables else None


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _runs(process: psutil.Process) -> bool:
    """Return True if a process still runs; a zombie has ended, although its parent may reap it seconds later."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Forker:
    """A process that forks other processes, as long as this object lives.

    Attributes:
        address: The path of the socket at which it listens.
        variables: The variables that its interpreter has read.
        commands: A folder for the start of a shell's PATH, with programs that fork those of `COMMANDS`.
    """

    def __init__(
        self,
        python: Path,
        environment: Mapping[str, str],
        modules: Sequence[str] = IMPORTED,
        cwd: Path | None = None,
    ) -> None:
        """Start an interpreter in *cwd* that imports *modules*, as in `IMPORTED`; it ends with this process."""
        self._folder = tempfile.TemporaryDirectory(prefix="forker-")
        self.address = f"{self._folder.name}/socket"
        self.variables = _interpreter_variables(environment)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [python, "-c", PROGRAM, str(listener.fileno()), *modules],
                env={name: value for name, value in environment.items() if name not in FOLLOWED},
                cwd=cwd,
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        helpers.add(self._process.pid)
        self.commands = Path(self._folder.name) / "commands"
        self.commands.mkdir()
        for name in COMMANDS:
            program = python.with_name(name)
            if program.exists():
                fixed = str(program), str(python), self.address, self.variables
                setup = json.dumps([*fixed, INTERPRETER_VARIABLES, FOLLOWED])
                (self.commands / name).write_text(f"#!{python} -IS\nSETUP = {setup!r}\n{CLIENT}")
                (self.commands / name).chmod(0o755)


@cache
def forker(*modules: str) -> Forker:
    """Return the forker of this environment that has also imported *modules*; the first call starts it."""
    return Forker(Path(sys.executable), os.environ, [*IMPORTED, *modules])


def forking(code: str) -> list[str]:
    """Return the arguments of a Python that runs *code*, and whose own Pythons, by `sys.executable`, are forked too."""
    return ["-c", f"import sys; sys.executable = {str(forker().commands / 'python')!r}\n{code}"]


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    result = []
    for member in members:
        forked = re.fullmatch(r"for (\d+)", _name(member))
        result += _family(int(forked[1])) if forked else [member]
    return result


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _interpreter_variables(environment: Mapping[str, str]) -> dict[str, str]:
    read = {name: value for name, value in environment.items() if name.startswith(INTERPRETER_VARIABLES)}
    return {name: value for name, value in read.items() if name not in FOLLOWED}
