"""Why a server could not be reached: the setting, the place, and the first line of what the driver says.

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
LENGTH = 200


class Server(NamedTuple):
    """What a connection leads to: the kind of server, its place as it may be shown, the setting that says so."""

    kind: str
    place: str
    setting: str


class _Cause(NamedTuple):
    pattern: re.Pattern[str]
    said: str
    remedy: str


def _cause(words: str, said: str, remedy: str) -> _Cause:
    return _Cause(re.compile(words, re.IGNORECASE), said, remedy)


# The first that matches counts. A refused connection also speaks of sockets.
_CAUSES = (
    _cause(
        "connection refused|connect call failed|no such file or directory",
        "nothing listens there",
        "start the server, or correct host and port in {setting}",
    ),
    _cause(
        "password authentication failed|no password supplied|wrongpass|invalid username-password|invalid password"
        "|sasl authentication failed|access_refused|login was refused|authentication required|noauth"
        "|auth <password> called|(peer|ident) authentication failed|role does not exist|authenticationerror",
        "the user or the password was refused",
        "correct user and password in {setting}",
    ),
    _cause(
        "database does not exist|no such database|db index|vhost",
        "there is no such database",
        "create it, or correct the database in {setting}",
    ),
)


def sentence(error: BaseException, server: Server) -> str:
    """Return one line: what could not be reached, why, and which setting to look at."""
    cause, remedy = classify(error, server)
    return f"cannot connect to {server.kind} at {server.place}: {cause}; {remedy}"


def classify(error: BaseException, server: Server) -> tuple[str, str]:
    """Return the cause of *error*, and what to do about it."""
    text = "\n".join(_texts(error))
    for cause in _CAUSES:
        if cause.pattern.search(text):
            return cause.said, cause.remedy.format(setting=server.setting)
    return _first_line(error), f"check {server.setting} and the server"


def _texts(error: BaseException | None, deep: int = 5) -> Iterator[str]:
    """Yield what *error* and those behind it say, without what is quoted there."""
    while error is not None and deep:
        yield f"{type(error).__name__}: {_QUOTED.sub('', str(error))}"
        error, deep = getattr(error, "orig", None) or error.__cause__ or error.__context__, deep - 1


def _first_line(error: BaseException) -> str:
    """Return the first line of what the driver says, without what it quotes, and anything with an @."""
    said = getattr(error, "orig", None) or error
    line = next((line for line in str(said).splitlines() if line.strip()), type(said).__name__)
    line = _LIBPQ.sub("", _WITH_USER.sub("…", _QUOTED.sub("", line)))
    printable = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(printable.split())[:LENGTH].rstrip(".:;") or type(said).__name__


def place(host: str | None, port: object = None, database: object = None) -> str:
    """Return a place as it may be shown, in one line.

    A password with an unescaped @ would be read as a part of the host or of what follows; then nothing is shown.
    """
    parts = [host or "this machine", port and f"port {port}", database not in (None, "") and f"database {database}"]
    text = ", ".join(str(part) for part in parts if part)
    if "@" in text:
        return "a place that is not shown, because the URL has more than one @ (write one in a password as %40)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:500])


def redis_place(arguments: Mapping[str, Any]) -> str:
    if arguments.get("path"):
        return place(arguments["path"], None, arguments.get("db"))
    return place(arguments.get("host"), arguments.get("port"), arguments.get("db"))
