"""The commands of an example's README, run as a reader pastes them."""

import functools
import os
import re
import shlex
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

import pages
import processes
from processes import COMMAND, Process
from waiting import PATIENCE

SHELL = re.compile(r"[|;&<>$]")
EXAMPLES = Path(__file__).parents[2] / "examples"
CHAPTERS = {"ses": ("amazon-ses.md", "Amazon SES")}
"""Examples whose commands stand on a page."""
FILES = tempfile.TemporaryDirectory()
"""Of the files that a README's commands make, until this process ends."""


def commands(example: str) -> list[pages.Command]:
    """Return the commands of an example's README, in order."""
    blocks = [block for block in blocks_of(example) if block.language == "console"]
    return [command for block in blocks for command in pages.commands_with_output(block)]


def blocks_of(example: str) -> list[pages.Block]:
    """Return the blocks of an example's README, or of the page that has them."""
    if example in CHAPTERS:
        page, heading = CHAPTERS[example]
        return pages.chapter(pages.ROOT / "docs" / page, heading)
    return pages.blocks(EXAMPLES / example / "README.md")


def command(example: str, *words: str) -> pages.Command:
    """Return the only command with all of *words*."""
    (match,) = [command for command in commands(example) if all(word in command.text for word in words)]
    return match


def environment(db, redis_url: str) -> dict[str, str]:
    """Return the environment of a reader's terminal, on a test's servers; its commands are forked."""
    variables = db.environment(redis_url)
    folders = (str(processes.forker().commands), str(Path(sys.executable).parent), variables.get("PATH", os.defpath))
    scripts = os.pathsep.join(folders)
    return {**variables, "PATH": scripts, "PYTHONPATH": str(EXAMPLES.parent)}


@functools.cache
def exports(example: str) -> dict[str, str]:
    """Return what the README exports besides the addresses of the servers; its files of secrets are made once."""
    folder = Path(FILES.name, example)
    folder.mkdir()
    lines = [command.text for command in commands(example) if re.match(r"echo .* > \S+$|export ", command.text)]
    names = [name for line in lines if line.startswith("export ") for name in re.findall(r" ([A-Z_]+)=", line)]
    script = "\n".join([*lines, "env -0"])
    result = processes.run(["sh", "-ec", script], {"PATH": os.defpath}, cwd=folder)
    assert result.returncode == 0, result.stderr
    variables = dict(line.split("=", 1) for line in result.stdout.split("\0") if line)
    return {name: variables[name].replace("@", f"@{folder}/", 1) if variables[name].startswith("@") else variables[name]
            for name in names if not name.endswith("_URL")}  # fmt: skip


def login(example: str) -> tuple[str, str]:
    """Return the user and the password of the README's webhook."""
    line = Path(exports(example)["MAILGLASS_WEBHOOK_SECRETS"].removeprefix("@")).read_text()
    user, password = line.strip().partition("=")[2].split(":")
    return user, password


def run(example: str, text: str, env: dict[str, str]) -> str:
    """Run a command in the example's folder, and return its output; our command is forked from a loaded process."""
    program, *arguments = shlex.split(text.replace("\\\n", " "))
    if program == "mailglass-reconcile" and not SHELL.search(text):
        words = [*COMMAND, *arguments]
        env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    else:
        words = ["sh", "-c", text]
    result = processes.run(words, env, cwd=EXAMPLES / example)
    assert result.returncode == 0, result.stderr
    return result.stdout


def curl(text: str, base: str, message_id: str = "", *, host: str | None = None) -> httpx.Response:
    """Send the request of a README's `curl` to the server at *base*, perhaps under the name of a *host*."""
    words = shlex.split(text.replace("MESSAGE_ID", message_id))
    options = {words[at]: words[at + 1] for at in range(2, len(words), 2)}
    kind = options["-H"].partition(": ")[2] if "-H" in options else "application/x-www-form-urlencoded"
    return httpx.request(
        "POST" if "-d" in options else "GET",
        re.sub(r"^http://localhost:\d+", base, words[1]),
        content=options.get("-d"),
        headers={"Content-Type": kind, **({"Host": host} if host else {})},
        auth=tuple(options["-u"].split(":")) if "-u" in options else None,
        timeout=PATIENCE,
    )


def trigger(example: str, type_: str, base: str, message_id: str, env: dict[str, str]) -> None:
    """Send a README's sample webhook of a type to the server at *base*, which must answer with 200."""
    text = command(example, "trigger", type_).text
    run(example, re.sub(r"http://localhost:\d+", base, text).replace("MESSAGE_ID", message_id), env)


def start(example: str, text: str, env: dict[str, str], until: str) -> AbstractContextManager[Process]:
    """Run a command in the example's folder while the block runs, from when its output has a text."""
    return processes.start(["sh", "-c", f"exec {text}"], env, cwd=EXAMPLES / example, until=until)
