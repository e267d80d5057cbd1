"""The command in a process of its own, on a test's database."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import click.testing
import jsonschema

import forking
from mailglass_reconcile.cli import command

SUBCOMMANDS = {name: command.get_command(None, name) for name in command.list_commands(click.Context(command))}
"""All of them, loaded."""


def run(db: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* and more of an environment, and return what it did; it must succeed."""
    done = tried(db, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done


def tried(db: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* and more of an environment, and return what it did, whatever that is."""
    redis_url = db.settings.redis_url.get_secret_value()
    return forking.run({**db.environment(redis_url), **environment}, *arguments)


def on_a_terminal(db: Any, *arguments: str) -> str:
    """Run the command on a terminal, and return what it wrote there."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mailglass_reconcile", *arguments],
        env={**db.environment(db.settings.redis_url.get_secret_value()), "COLUMNS": "80", "TERM": "dumb"},
        stdin=other,
        stdout=other,
        stderr=other,
    )
    os.close(other)
    written = b""
    with suppress(OSError):  # the terminal is gone when the process is
        while piece := os.read(main, 65_536):
            written += piece
    process.wait(60)
    os.close(main)
    return written.decode().replace("\r\n", "\n")


def inside(*arguments: str) -> click.testing.Result:
    """Run the command within this process, on what it is configured for: a test of much output needs many runs."""
    return click.testing.CliRunner().invoke(command, arguments)


SCHEMAS = Path(__file__).parent.parent / "docs" / "schemas"


def conforming(name: str, text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of *text*, one a line, each of which conforms to the schema of that name."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        validator.validate(line)
    return lines
