"""The command on a test's database: within this process, or in a process of its own."""

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any

import click
import click.testing
import jsonschema

import processes
from mailglass_reconcile import runtime
from mailglass_reconcile.cli import command, main
from processes import COMMAND, Process

# Before 8.2, click mixes stderr into the output by default.
_SEPARATE_STREAMS: Any = {"mix_stderr": False} if "mix_stderr" in signature(click.testing.CliRunner).parameters else {}
RUNNER = click.testing.CliRunner(**_SEPARATE_STREAMS)
SUBCOMMANDS = {name: command.get_command(None, name) for name in command.list_commands(click.Context(command))}
"""All of them, loaded."""


def run(db: Any, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* and environment variables, and return its result; it must succeed."""
    result = run_unchecked(db, *arguments, stdin=stdin, **environment)
    assert result.returncode == 0, result.stderr
    return result


def run_unchecked(
    db: Any, *arguments: str, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with *arguments* and environment variables, and return its result, whatever it is.

    It runs within this process as if it were another one: with settings and a log of its own.
    """
    variables = {**db.environment(), **environment}
    assert "MAILGLASS_IMPORTS" not in variables, "modules are imported once in a process: use `run_forked`"
    absent = {name: None for name in os.environ if name.startswith("MAILGLASS_") and name not in variables}
    program = click.Command("mailglass-reconcile", callback=lambda: main(arguments))
    with _unconfigured(), _without_a_log(), _without_a_celery_app():
        result = RUNNER.invoke(program, [], input=stdin, env={**variables, **absent})
    if result.exc_info and not isinstance(result.exception, SystemExit | None):
        raise result.exc_info[1].with_traceback(result.exc_info[2])  # type: ignore[union-attr]
    return subprocess.CompletedProcess(
        ["mailglass-reconcile", *arguments], result.exit_code, result.stdout, result.stderr
    )


def run_forked(db: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which has loaded nothing else, and return its result."""
    return processes.run([*COMMAND, *arguments], {**db.environment(), **environment})


@contextmanager
def _unconfigured() -> Iterator[None]:
    """Read settings from the environment while the block runs."""
    before = runtime._Configuration
    configured = {name: getattr(before, name) for name in ("engine", "redis", "settings")}
    runtime.configure()
    try:
        yield
    finally:
        runtime.configure(**configured)


@contextmanager
def _without_a_log() -> Iterator[None]:
    """Let the block configure logging like a new process."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


@contextmanager
def _without_a_celery_app() -> Iterator[None]:
    """Let the block start without the Celery app that another test may have made in this process."""
    if "celery" not in sys.modules:
        yield
        return
    from celery import _state  # noqa: PLC0415 - most tests do not load it

    app, _state._tls.current_app = _state._tls.current_app, None
    try:
        yield
    finally:
        _state._tls.current_app = app


def run_on_terminal(db: Any, *arguments: str, typed: str = "", code: int | None = None) -> str:
    """Run the command on a terminal with *typed* input, and return what it shows at the end.

    If a *code* is given, the command must end with it.
    """
    main, terminal = pty.openpty()
    environment = {**db.environment(), "COLUMNS": "80", "TERM": "dumb"}
    files = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with processes.start([*COMMAND, *arguments], environment, files=files) as process:
        os.close(terminal)
        os.write(main, typed.encode())
        written = b""
        with suppress(OSError):  # the terminal closes when the process has ended
            while piece := os.read(main, 65_536):
                written += piece
        os.close(main)
        assert process.wait() == code or code is None
    return written.decode().replace("\r\n", "\n")


def follow(environment: Mapping[str, str], *options: str) -> AbstractContextManager[Process]:
    """Run `follow --json` while the block runs; SIGTERM must end it with 0."""
    return processes.start([*COMMAND, "follow", "--json", *options], environment, exit_code=0)


def sweeps(process: Process) -> list[dict[str, Any]]:
    """Return the sweeps that a process has printed as JSON so far."""
    return conforming("sweep", process.stdout.rpartition("\n")[0])


def count_linked(process: Process) -> int:
    """Return the number of orphans that these sweeps have linked."""
    return sum(sweep["linked"] for sweep in sweeps(process))


def run_here(*arguments: str) -> click.testing.Result:
    """Run the command within this process and its configuration, which is fast enough for many runs."""
    return RUNNER.invoke(command, arguments)


SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def _without_other_fields(schema: Any) -> Any:
    """Return a schema that allows only the fields that it describes."""
    if isinstance(schema, dict):
        closed = {"additionalProperties": False} if "required" in schema else {}
        return {key: _without_other_fields(value) for key, value in schema.items()} | closed
    return [_without_other_fields(value) for value in schema] if isinstance(schema, list) else schema


def conforming(name: str, text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of *text*, one per line, after validating each against the schema of that name.

    A program must not rely on it, but each field that is printed is in the schema.
    """
    schema = _without_other_fields(json.loads((SCHEMAS / f"{name}.json").read_text()))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        validator.validate(line)
    return lines
