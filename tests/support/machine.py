"""An empty machine: a virtual environment, a wheel of this checkout, and terminals that run a page's commands."""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pages
import processes
from mailglass_reconcile.testing.servers import free_port
from processes import Condition, Process

IGNORED = shutil.ignore_patterns(
    ".git", ".venv*", ".nox", "__pycache__", ".*_cache", ".hypothesis", "tests", "docs", "bench"
)
URL = re.compile(r"(postgresql(?:\+psycopg)?)://localhost/app(?![\w/])")
DJANGO = '"NAME": "app", "HOST": "localhost"'
DOCKER = """#!/usr/bin/env bash
set -euo pipefail
if [ "$1" = build ]; then
  [ "$*" = "build --tag mailglass-reconcile ." ]
  test -f Dockerfile
else
  [ "$1 $2 $3 $5" = "run --rm --env-file mailglass-reconcile" ]
  exec env -i PATH="$PATH" HOME="$HOME" LANG="$LANG" $(cat "$4") "${@:6}"
fi
"""
REDIS = "redis://localhost:6379/0"
SERVER = re.compile(r"\b(?:uvicorn|flask .*\brun|runserver|mailglass-reconcile receive)\b")
WORKER = re.compile(r"\bcelery -A \w+ (worker|beat)\b")


class Machine:
    """A folder with a clone and a virtual environment, made as `make demo` and the README's lines of Install make it.

    There is no network: a copy of this checkout is the clone, and pip builds the package from it, and finds what it
    depends on installed, in a folder of links to what is installed here. What is installed then is
    imported once: `commands` is a folder for the PATH, whose commands are forked.
    """

    def __init__(self, folder: Path) -> None:
        """Make the machine, with the package in it."""
        self.folder = folder
        self.installed: set[str] = set()
        (trying,), (installing,) = (pages.section(pages.README, heading) for heading in ("Try it", "Install it"))
        cloning, entering, *_ = pages.commands(trying)
        building, *self.settling = pages.commands(installing)
        assert building.startswith("pip install PATH_OF_THE_CLONE")
        self.clone = folder / entering.removeprefix("cd ")
        assert re.fullmatch(rf"git clone https://git\.example\.com/{self.clone.name}\.git +#.*", cloning)
        shutil.copytree(pages.ROOT, self.clone, ignore=IGNORED)
        self.given = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # without build isolation: the build backend is installed
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.run("python3 -m venv .venv", self.clone)
        self._lend_what_is_installed()
        self.run(f". .venv/bin/activate && {building.replace('PATH_OF_THE_CLONE', '.')}", self.clone)
        modules = [*processes.IMPORTED, *processes.FRAMEWORKS]
        self._forker = processes.Forker(self.clone / ".venv/bin/python", self.given, modules)
        self.commands = self._forker.commands

    def run(self, script: str, where: Path, **environment: str) -> str:
        """Run a script, and return what it printed."""
        result = processes.run(["bash", "-ec", script], {**self.given, **environment}, cwd=where)
        assert result.returncode == 0, f"{script}\n{result.stdout}{result.stderr}"
        return result.stdout

    def _lend_what_is_installed(self) -> None:
        """Link everything that is installed here, except this package, into the environment, with its commands."""
        installed_here, links = Path(sysconfig.get_path("purelib")), self.folder / "lent"
        links.mkdir()
        for installed in installed_here.iterdir():
            if not re.match(r"_?_?(editable_*)?mailglass", installed.name):
                (links / installed.name).symlink_to(installed)
        (site,) = (self.clone / ".venv/lib").glob("python*/site-packages")
        (site / "lent.pth").write_text(f"{links}\n")
        for distribution in distributions(path=[str(links)]):
            for command in distribution.entry_points.select(group="console_scripts"):
                self._lend(command)

    def _lend(self, command: EntryPoint) -> None:
        script = self.clone / ".venv/bin" / command.name
        if script.exists():
            return
        call = (
            f"import sys\nfrom {command.module} import {command.attr.partition('.')[0]}\nsys.exit({command.attr}())\n"
        )
        script.write_text(f"#!{self.clone}/.venv/bin/python\n{call}")
        script.chmod(0o755)


class Reader(ExitStack):
    """A reader who has followed the README with a database of their own, and goes on with a page.

    They save a block of Python under the name in its first line, paste each command, leave a server running, and
    see what the page shows.
    """

    def __init__(
        self, machine: Machine, url: str, redis_url: str, where: Path, replacements: Mapping[str, str] | None = None
    ) -> None:
        """Begin in the folder *where*, with a test's servers in place of the reader's.

        Docker is a script that runs the image's command as a process, with its container's environment.
        """
        super().__init__()
        self._machine, self._url, self._redis_url, self._where = machine, url, redis_url, where
        self.ports: dict[str, int] = {}
        """The ports on which the servers of the page's ports listen here."""
        self.replacements = dict(replacements or {})
        """What stands on the page, and what this reader types instead."""
        docker = machine.folder / "docker" / "docker"
        docker.parent.mkdir(exist_ok=True)
        docker.write_text(DOCKER)
        docker.chmod(0o755)
        self.environment = {"MAILGLASS_REDIS_URL": redis_url, "PATH": f"{docker.parent}:{machine.given['PATH']}"}
        self.process: Process
        """The process that was started last."""
        activate = f". {machine.clone}/.venv/bin/activate; PATH={machine.commands}:$PATH"
        self._started = [
            activate,
            *(self._replace_servers(line) for line in machine.settling if line.startswith("export ")),
        ]

    def follow(self, blocks: Iterable[pages.Block]) -> None:
        """Follow the blocks of a page in order."""
        for block in blocks:
            if block.language == "python" and (name := re.match(r"# (\S+\.py)\n", block.text)):
                self.save(name[1], block.text)
            elif block.language == "console" and not block.not_run:
                self.paste(block)

    def save(self, name: str, text: str) -> None:
        """Save a file."""
        (self._where / name).write_text(self._replace_servers(text))

    def paste(self, block: pages.Block) -> None:
        """Run the commands of a block; each must succeed and print what the page shows."""
        for command, expected in zip(pages.commands(block), pages.outputs(block), strict=True):
            if SERVER.search(command):
                self._serve(command)
            elif match := WORKER.search(command):
                self._start(command, " ready." if match[1] == "worker" else "beat: Starting")
            elif command.endswith("demo --keep"):
                self._start(command, "export MAILGLASS_REDIS_URL=")
            elif re.fullmatch(r"export \w+='…'", command):  # what the demo has printed
                (line,) = re.findall(rf"^{command.partition('=')[0]}=.*$", self.process.output, re.M)
                self._started.append(line.strip())
            elif command.startswith("export ") or re.match(r"\w+\(\) \{", command):
                self._started.append(self._replace_servers(command))
            elif command.startswith("mkdir ") and " && cd " in command:
                self._where = Path(self._run(f"{command} && pwd", self._where).strip())
            elif command.startswith("pip install "):
                self._install(command)
            elif command.startswith("docker build "):
                self._run(command, self._machine.clone)
            else:
                printed = self._run(command, self._where)
                shown = normalize_output(self._replace_servers(expected))
                assert shown == normalize_output(printed) or not shown, f"{command}\n{printed}"

    def _install(self, command: str) -> None:
        """Run a line of pip in the clone; further extras need no second build."""
        if command not in self._machine.installed:
            self._run(re.sub(r'"(\.|PATH_OF_THE_CLONE)\[', '"mailglass-reconcile[', command), self._machine.clone)
            self._machine.installed.add(command)

    def _run(self, command: str, where: Path) -> str:
        lines = [*self._started, self._replace_servers(command)]
        return self._machine.run("\n".join(lines), where, **self.environment)

    def _serve(self, command: str) -> None:
        """Start a server on a free port until the reader is done, and wait until it listens."""
        port = free_port()
        match = re.search(r"runserver (\d+)", command)
        usual = {"uvicorn": "8000", "flask": "5000", "mailglass-reconcile": "8081"}
        self.ports[match[1] if match else next(usual[name] for name in usual if name in command)] = port
        command = command.replace(match[0], f"runserver {port} --noreload") if match else f"{command} --port {port}"
        self._start(re.sub(r"^MAILGLASS", "env MAILGLASS", command), port)

    def _start(self, command: str, until: Condition) -> None:
        """Start a command that does not end until the reader is done, and wait until it is ready."""
        script = "\n".join([*self._started, f"exec {self._replace_servers(command)}"])
        environment = {**self._machine.given, **self.environment}
        starting = processes.start(["bash", "-ec", script], environment, until=until, cwd=self._where)
        self.process = self.enter_context(starting)

    def _replace_servers(self, text: str) -> str:
        """Replace the reader's servers in a text by the test's."""
        for address, real in self.replacements.items():
            text = text.replace(address, real)
        text = URL.sub(rf"'\1{self._url.removeprefix('postgresql')}'", text).replace(DJANGO, _django(self._url))
        text = text.replace(REDIS, self._redis_url)
        for port, real in self.ports.items():
            text = text.replace(f":{port}/", f":{real}/")
        return text


def _django(url: str) -> str:
    """Return the part of Django's DATABASES that names a database."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    where = conninfo_to_dict(url)
    return f'"NAME": "{where.pop("dbname")}", "OPTIONS": {where!r}'.replace("'", '"')


def normalize_output(printed: str) -> str:
    """Normalize white space in an output, and remove ids, durations and the number of checks."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[\d,]+ ms|\d+ checks", "ID", " ".join(printed.split()))
