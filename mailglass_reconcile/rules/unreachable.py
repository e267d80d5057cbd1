"""Why a server could not be reached, by cause: one sentence that names place and setting, never user or password.

The drivers of Postgres, Redis and brokers report a failed connection as text only, without a code. What they quote,
such as the name of a role, is dropped before anything is compared, and none of their words are repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_QUOTED = re.compile('"[^"]*"')


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


# The first that fits counts. A refused connection also speaks of sockets, a wrong option of SSL.
_CAUSES = (
    _cause(
        "invalid connection option|invalid (sslmode|port|[a-z_]+ value|integer value)",
        "an option of the URL is unknown, or has a value that cannot be used",
        "correct the part after the ? in {setting}",
    ),
    _cause("no space left on device", "its disk is full", "make room on the disk of that server; {setting} is right"),
    _cause(
        "connection refused|connect call failed|no such file or directory",
        "nothing listens there",
        "start the server, or correct host and port in {setting}",
    ),
    _cause(
        "name or service not known|name resolution|failed to resolve|could not translate host|nodename nor servname"
        "|no address associated|getaddrinfo",
        "the name of the host is not known",
        "correct the host in {setting}, or the name service of this machine",
    ),
    _cause(
        "no route to host|network is unreachable", "the network does not reach it", "check the network and {setting}"
    ),
    _cause(
        "pg_hba.conf (entry|rejects)",
        "the server accepts no connection from this machine as this user, or not without TLS",
        "add a line to its pg_hba.conf, or sslmode=require to {setting}",
    ),
    _cause(
        "password authentication failed|no password supplied|wrongpass|invalid username-password|invalid password"
        "|sasl authentication failed|access_refused|login was refused|authentication required|noauth"
        '|auth <password> called|(peer|ident) authentication failed|role "" does not exist|authenticationerror',
        "the user or the password was refused",
        "correct user and password in {setting}",
    ),
    _cause(
        'database "" does not exist|no such database|db index|vhost',
        "there is no such database",
        "create it, or correct the database in {setting}",
    ),
    _cause(
        "not currently accepting connections",
        "this database takes no connections",
        "ALTER DATABASE … ALLOW_CONNECTIONS true, or correct the database in {setting}",
    ),
    _cause(
        "permission denied for database",
        "this user may not connect to this database",
        "GRANT CONNECT ON DATABASE to the user of {setting}",
    ),
    _cause(
        "too many (clients|connections)|connection slots|max_client_conn|no more connections|max number of clients",
        "the server has no connection left",
        "close some, or raise the server's limit; {setting} is right",
    ),
    _cause(
        "starting up|shutting down|recovery mode|not yet accepting|is loading|busyloading",
        "the server is starting or stopping",
        "try again in a moment; {setting} is right",
    ),
    _cause(
        "ssl|tls|certificate",
        "no TLS connection could be made",
        "check sslmode, certificates and port in {setting}",
    ),
    _cause(
        "timeout|timed out|takes too long",
        "it did not answer in time",
        "check that the server is not overloaded, and host, port and firewall of {setting}",
    ),
    _cause(
        "closed the connection|connection closed|connection reset|broken pipe|connection to broker lost|eof",
        "it closed the connection",
        "check that {setting} leads to a server of this kind, with or without TLS as it wants it",
    ),
)


def sentence(error: BaseException, server: Server) -> str:
    """Return one line: what could not be reached, why, and which setting to look at."""
    said, remedy = told_apart(error, server)
    return f"cannot connect to {server.kind} at {server.place}: {said}; {remedy}"


def told_apart(error: BaseException, server: Server) -> tuple[str, str]:
    """Return the cause of *error*, and what to do about it."""
    # The name of a host may hold a word that is looked for, such as ssl.
    text = "\n".join(_texts(error)).replace(server.place.partition(",")[0], "")
    for cause in _CAUSES:
        if cause.pattern.search(text):
            return cause.said, cause.remedy.format(setting=server.setting)
    kind = type(getattr(error, "orig", None) or error).__name__
    return f"the server refused the connection ({kind})", f"check {server.setting} and the server's log"


def _texts(error: BaseException | None, deep: int = 5) -> Iterator[str]:
    """Yield what *error* and those behind it say, without what is quoted there."""
    while error is not None and deep:
        unquoted = _QUOTED.sub('""', str(error))
        yield f"{type(error).__name__}: {unquoted}"
        error, deep = getattr(error, "orig", None) or error.__cause__ or error.__context__, deep - 1


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
