"""An empty machine: a virtual environment of its own, a wheel of this checkout, and a terminal to paste lines into."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pages
from installation import end, wait_until

PATIENCE = 90
IGNORED = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "tests", "docs", "bench")
PACKAGE = "mailglass_reconcile"
URL = "postgresql://localhost/app"
REDIS_URL = "redis://localhost:6379/0"


class Machine:
    """A folder with a checkout and a virtual environment, made by the lines of the README's section Start.

    There is no network: pip builds the package from the checkout, and finds what it depends on installed, in a folder
    of links to what is installed here.
    """

    def __init__(self, folder: Path) -> None:
        """Make the machine, with the package in it."""
        self.folder = folder
        self.checkout = folder / "checkout"
        shutil.copytree(pages.ROOT, self.checkout, ignore=IGNORED)
        (block,) = pages.section(pages.README, "Start")
        making, building, _ = pages.commands(block)
        self.given = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # which means without: the build backend is there already
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.run(making, where=self.checkout)
        self._lend_what_is_installed()
        self.run(f". .venv/bin/activate && {building}", where=self.checkout)
        self.exports = f"cd {self.checkout}; . .venv/bin/activate; "

    def paste(self, lines: str, url: str, redis_url: str, where: Path) -> str:
        """Paste lines into a terminal in which the section Start was pasted, with a test's servers in place of the
        reader's, and return what they printed; each must succeed."""
        return self.run(f"{self._started(url, redis_url, where)}\n{_with(lines, url, redis_url)}", where)

    @contextmanager
    def running(self, line: str, url: str, redis_url: str, where: Path, until: str) -> Iterator[None]:
        """Paste a line that does not end, and run the block when it has printed *until*."""
        log = self.folder / "log"
        script = f"{self._started(url, redis_url, where)}\nexec {_with(line, url, redis_url)}"
        with log.open("w") as output:
            process = subprocess.Popen(["bash", "-ec", script], env=self.given, stdout=output, stderr=output)
        try:
            wait_until(lambda: until in log.read_text() or process.poll() is not None, PATIENCE)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            end(process)

    def run(self, script: str, where: Path) -> str:
        """Run a script, and return what it printed."""
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=where, env=self.given, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _started(self, url: str, redis_url: str, where: Path) -> str:
        (block,) = pages.section(pages.README, "Start")
        return f"{self.exports}cd {where}; {_with(pages.commands(block)[2], url, redis_url)}"

    def _lend_what_is_installed(self) -> None:
        """Put everything that is installed here but ours into the environment, with its commands."""
        here, lent = Path(sysconfig.get_path("purelib")), self.folder / "lent"
        lent.mkdir()
        for installed in here.iterdir():
            if not re.match(r"_?_?(editable_*)?mailglass", installed.name):
                (lent / installed.name).symlink_to(installed)
        (site,) = (self.checkout / ".venv/lib").glob("python*/site-packages")
        (site / "lent.pth").write_text(f"{lent}\n")
        for one in distributions(path=[str(lent)]):
            for command in one.entry_points.select(group="console_scripts"):
                self._lend(command)

    def _lend(self, command: EntryPoint) -> None:
        script = self.checkout / ".venv/bin" / command.name
        if script.exists():
            return
        call = (
            f"import sys\nfrom {command.module} import {command.attr.partition('.')[0]}\nsys.exit({command.attr}())\n"
        )
        script.write_text(f"#!{self.checkout}/.venv/bin/python\n{call}")
        script.chmod(0o755)


def _with(lines: str, url: str, redis_url: str) -> str:
    """Return lines with a test's servers in place of the reader's."""
    driver = url.replace("postgresql:", "postgresql+psycopg:", 1)
    given = lines.replace(URL.replace("postgresql:", "postgresql+psycopg:"), driver)
    return given.replace(URL, shlex.quote(url)).replace(REDIS_URL, redis_url)
