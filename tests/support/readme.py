"""The commands of an example's README, run as a reader would paste them."""

import os
import re
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

import pages
import processes
from processes import COMMAND, Process

SHELL = re.compile(r"[|;&<>$]")
EXAMPLES = Path(__file__).parents[2] / "examples"


def commands(example: str) -> list[pages.Command]:
    """Return the commands of an example's README, in its order."""
    blocks = [block for block in pages.blocks(EXAMPLES / example / "README.md") if block.language == "console"]
    return [command for block in blocks for command in pages.commands_with_output(block)]


def command(example: str, *words: str) -> pages.Command:
    """Return the only command with all of *words*."""
    (found,) = [one for one in commands(example) if all(word in one.text for word in words)]
    return found


def environment(db, redis_url: str) -> dict[str, str]:
    """Return the environment of a reader's terminal, on a test's servers, with this package and its scripts."""
    given = db.environment(redis_url)
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    return {**given, "PATH": scripts, "PYTHONPATH": str(EXAMPLES.parent)}


def exports(example: str) -> dict[str, str]:
    """Return what the README exports besides the addresses of the servers."""
    words = [word for one in commands(example) if one.text.startswith("export ") for word in shlex.split(one.text)[1:]]
    return dict(word.split("=", 1) for word in words if not word.partition("=")[0].endswith("_URL"))


def run(example: str, text: str, env: dict[str, str]) -> str:
    """Run a command in the example's folder, and return what it printed; ours is forked from one that is loaded."""
    program, *arguments = shlex.split(text.replace("\\\n", " "))
    if program == "mailglass-reconcile" and not SHELL.search(text):
        words = [*COMMAND, *arguments]
        env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    else:
        words = ["sh", "-c", text]
    done = processes.run(words, env, cwd=EXAMPLES / example)
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(text: str, base: str, message_id: str = "") -> httpx.Response:
    """Send what a `curl` of a README sends, to the server at *base*."""
    words = shlex.split(text.replace("MESSAGE_ID", message_id))
    options = {words[at]: words[at + 1] for at in range(2, len(words), 2)}
    kind = options["-H"].partition(": ")[2] if "-H" in options else "application/x-www-form-urlencoded"
    return httpx.request(
        "POST" if "-d" in options else "GET",
        re.sub(r"^http://localhost:\d+", base, words[1]),
        content=options.get("-d"),
        headers={"Content-Type": kind},
        auth=tuple(options["-u"].split(":")) if "-u" in options else None,
    )


def trigger(example: str, type_: str, base: str, message_id: str, env: dict[str, str]) -> None:
    """Send the sample webhook of a type that a README sends, to the server at *base*; it must be answered with 200."""
    text = command(example, "trigger", type_).text
    run(example, re.sub(r"http://localhost:\d+", base, text).replace("MESSAGE_ID", message_id), env)


def start(example: str, text: str, env: dict[str, str], until: str) -> AbstractContextManager[Process]:
    """Run a command in the example's folder while a block does, from when its output has a text."""
    return processes.start(["sh", "-c", f"exec {text}"], env, cwd=EXAMPLES / example, until=until)
