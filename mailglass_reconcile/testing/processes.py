"""Run a program in a temporary folder, which is deleted with it.

PostgreSQL refuses to run as root, and no server should. Root's servers run as the system user `nobody`, from a copy of
the program in that folder, so that `nobody` needs no access to the virtual environment.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mailglass_reconcile.errors import MailglassReconcileError

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_SECONDS = 30.0
STOP_SECONDS = 30.0
# Reads the program's id from a pipe that ends with this process, even if that is killed; then it stops the program and
# deletes the folder.
KEEPER = """
program=; tries=0
while read -r one; do program=$one; done
if [ -n "$program" ]; then
  kill "-$1" "$program" 2>/dev/null
  while kill -0 "$program" 2>/dev/null && [ "$tries" -lt 50 ]; do tries=$((tries + 1)); sleep 0.1; done
fi
rm -rf -- "$2"
"""
MAX_PATH_BYTES = 60  # a socket's whole path has at most 107 bytes on Linux, and 103 on macOS


class Process:
    """A program in a new folder of mode 0700; it runs as `user` if that is given, in place of root."""

    def __init__(self, name: str, *, user: str | None = None, ending: signal.Signals = signal.SIGTERM) -> None:
        self.user = user
        self.directory = Path(tempfile.mkdtemp(prefix="mailglass-", dir=_choose_directory(user)))
        self._name, self._ending = name, ending
        self._process: subprocess.Popen[bytes] | None = None
        read, write = os.pipe()
        self._to_keeper = os.fdopen(write, "wb", buffering=0)
        self._keeper = subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
            ["/bin/sh", "-c", KEEPER, "keeper", str(int(ending)), str(self.directory)],
            stdin=read,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read)
        if user:
            shutil.chown(self.directory, user)

    def write(self, name: str, text: str) -> None:
        """Write a file that only the program can read, such as one with a password."""
        path = self.directory / name
        path.touch(0o600)
        path.write_text(text)
        if self.user:
            shutil.chown(path, self.user)

    def run(self, *command: str) -> int:
        """Run another command in the folder, such as one that prepares it, and return its exit code."""
        code = self._start(command, None).wait()
        self._running(None)
        return code

    def launch(self, *command: str, environment: dict[str, str] | None = None) -> None:
        """Start the program in the folder, with its output in the log there; by default without our environment."""
        self._start(command, environment)

    def _start(self, command: Sequence[str], environment: dict[str, str] | None) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
                command,
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
                umask=0o077,
                cwd=self.directory,
                env={"PATH": os.defpath, "LC_ALL": "C"} if environment is None else environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for us, and we stop the program
            )
        self._running(process)
        return process

    def _running(self, process: subprocess.Popen[bytes] | None) -> None:
        """Set the process that runs from now on, for the keeper too."""
        self._process = process
        self._to_keeper.write(f"{process.pid if process else ''}\n".encode())

    def require(self) -> None:
        """Check that the program is running.

        Raises:
            MailglassReconcileError: It has ended; the message has the last line of its log.
        """
        if self._process is None or self._process.poll() is not None:
            raise MailglassReconcileError(f"{self._name} has ended: {self.last_line()}")

    def until(self, answers: Callable[[], bool]) -> None:
        """Wait until the program responds: until *answers* returns True.

        Raises:
            MailglassReconcileError: It has ended, or did not answer within 30 seconds.
        """
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            self.require()
            if time.monotonic() > deadline:
                raise MailglassReconcileError(f"{self._name} did not start: {self.last_line()}")
            time.sleep(0.01)

    def last_line(self) -> str:
        return (self.directory / "log").read_text(errors="replace").strip().rpartition("\n")[2] or "its log is empty"

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Send the signal, wait, and kill what is left of the program's process group."""
        if self._process is None:
            return
        self._process.send_signal(self._ending)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._running(None)

    def close(self) -> None:
        """Stop the program, delete the folder, and end the keeper, which would do both if this process died."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._keeper.kill()
        self._keeper.wait()
        self._to_keeper.close()


P = TypeVar("P", bound=Process)


@contextmanager
def closing(make: Callable[[], P]) -> Iterator[P]:
    """Yield the process that *make* returns, and close it at the end of the block.

    Signals are blocked while it is made and closed, so that none leaves a process behind.
    """
    process = None
    try:
        with block_signals():
            process = make()
        yield process
    finally:
        with block_signals():
            if process is not None:
                process.close()


@contextmanager
def block_signals() -> Iterator[None]:
    """Block Ctrl-C, SIGTERM and SIGHUP for this thread and the processes it starts, until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def servers_user() -> str | None:
    """Return the user for servers if this process is root's, else None."""
    return "nobody" if os.geteuid() == 0 else None


def _choose_directory(user: str | None) -> Path:
    """Return the temporary folder, or another one if a socket's path there is too long or *user* cannot enter it."""
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - for a new folder
    for path in map(Path.resolve, candidates):
        if len(os.fsencode(path)) <= MAX_PATH_BYTES and (user is None or _is_accessible(path)):
            return path
    accessible = f" that the user {user} can enter" if user else ""
    raise MailglassReconcileError(
        f"servers need a temporary folder{accessible}, with a path of at most {MAX_PATH_BYTES} bytes; set TMPDIR to one"
    )


def _is_accessible(path: Path) -> bool:
    """Return True if every user can enter a folder."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
