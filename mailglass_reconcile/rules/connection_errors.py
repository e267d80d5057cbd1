"""Describe a failed connection: the server's location, the cause, and the setting to correct.

The drivers of Postgres, Redis and brokers report a failed connection as text only, without a code. What they quote,
such as the name of a role, and what may hold a password is left out. Three causes have a remedy of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_QUOTED = re.compile(r"""\s*(?:"[^"]*"|»[^«]*«|„[^“]*“|“[^”]*”|'[^'\s]+')""")
_WITH_USER = re.compile(r"\S*@\S*")
_LIBPQ = re.compile(r"^connection failed: (?:connection to server .*? failed: )?")
MAX_CHARACTERS = 200


class Server(NamedTuple):
    """A server to connect to.

    Attributes:
        kind: The name of the server's kind, such as `Postgres`.
        location: Host, port and database, without user and password, from `format_location`.
        setting: The setting that names it.
    """

    kind: str
    location: str
    setting: str


class _ErrorPattern(NamedTuple):
    pattern: re.Pattern[str]
    description: str
    remedy: str


def _error_pattern(pattern: str, description: str, remedy: str) -> _ErrorPattern:
    return _ErrorPattern(re.compile(pattern, re.IGNORECASE), description, remedy)


# The first that matches counts. A refused connection also speaks of sockets.
_CAUSES = (
    _error_pattern(
        "connection refused|connect call failed|no such file or directory",
        "nothing listens there",
        "start the server, or correct host and port in {setting}",
    ),
    _error_pattern(
        "password authentication failed|no password supplied|wrongpass|invalid username-password|invalid password"
        "|sasl authentication failed|access_refused|login was refused|authentication required|noauth"
        "|auth <password> called|(peer|ident) authentication failed|role does not exist|authenticationerror",
        "the user or the password was refused",
        "correct user and password in {setting}",
    ),
    _error_pattern(
        "database does not exist|no such database|db index|vhost",
        "there is no such database",
        "create it, or correct the database in {setting}",
    ),
)


def describe(error: BaseException, server: Server) -> str:
    """Return one line: which server cannot be reached, why, and which setting to correct."""
    cause, remedy = classify(error, server)
    return f"cannot connect to {server.kind} at {server.location}: {cause}; {remedy}"


def classify(error: BaseException, server: Server) -> tuple[str, str]:
    """Return the cause of *error* and its remedy; an unknown cause is the first line of the driver's message."""
    text = "\n".join(_messages(error))
    for cause in _CAUSES:
        if cause.pattern.search(text):
            return cause.description, cause.remedy.format(setting=server.setting)
    return _first_line(error), f"check {server.setting} and the server"


def _messages(error: BaseException | None, limit: int = 5) -> Iterator[str]:
    """Yield the messages of *error* and of its causes, without quoted text."""
    while error is not None and limit:
        yield f"{type(error).__name__}: {_QUOTED.sub('', str(error))}"
        error, limit = getattr(error, "orig", None) or error.__cause__ or error.__context__, limit - 1


def _first_line(error: BaseException) -> str:
    """Return the first line of the driver's message, without quoted text and without words that contain an @."""
    driver_error = getattr(error, "orig", None) or error
    line = next((line for line in str(driver_error).splitlines() if line.strip()), type(driver_error).__name__)
    line = _LIBPQ.sub("", _WITH_USER.sub("…", _QUOTED.sub("", line)))
    printable = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(printable.split())[:MAX_CHARACTERS].rstrip(".:;") or type(driver_error).__name__


def format_location(host: str | None, port: object = None, database: object = None) -> str:
    """Return host, port and database in one line, safe to print.

    An unescaped @ in a password makes the driver read a part of it as the host or the database; then nothing is shown.
    """
    parts = [host or "this machine", port and f"port {port}", database not in (None, "") and f"database {database}"]
    text = ", ".join(str(part) for part in parts if part)
    if "@" in text:
        return "a place that is not shown, because the URL has more than one @ (write one in a password as %40)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:500])


def format_redis_location(arguments: Mapping[str, Any]) -> str:
    """Return the location that redis-py's connection *arguments* name."""
    if arguments.get("path"):
        return format_location(arguments["path"], None, arguments.get("db"))
    return format_location(arguments.get("host"), arguments.get("port"), arguments.get("db"))
