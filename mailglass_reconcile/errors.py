"""The package's exceptions, and the translation of the database driver's errors into them.

No message repeats a value of a row or a URL: both may hold personal data or a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

LEDGER_IMMUTABLE = "45A01"
UNDEFINED_TABLE = "42P01"
UNDEFINED_COLUMN = "42703"
UNDEFINED_FUNCTION = "42883"
UNDEFINED_SCHEMA = "3F000"
AMBIGUOUS_FUNCTION = "42725"
DIVISION_BY_ZERO = "22012"
INSUFFICIENT_PRIVILEGE = "42501"
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
DISK_FULL = "53100"
READ_ONLY = "25006"
DEPENDENT_OBJECTS = "2BP01"

CONTENTION_SQLSTATES = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the same transaction may succeed a moment later."""

OUTAGE_SQLSTATES = frozenset(
    {
        READ_ONLY,  # a fail-over under way
        DISK_FULL,
        "53200",  # out of memory
        "53300",  # too many connections
        "57P01",  # administrator's shutdown
        "57P02",  # crash shutdown
        "57P03",  # cannot connect now
    }
)
"""States of the server, whatever the rows; lost connections, class 08, belong to them."""


COMMAND = "mailglass-reconcile"


class _LocalNames:
    """The words of messages that have others in this process's environment, with these."""

    words: Mapping[str, str] = {}


def set_local_names(words: Mapping[str, str]) -> None:
    """Set the words that replace those of messages, such as those for the command and for settings in Django."""
    _LocalNames.words = words


@cache
def docs_url(name: str) -> str:
    """Return the address of a page of the documentation, or its file if the package has no address.

    Args:
        name: The page and its heading, such as `roles.md` or `celery.md#your-own-client`.
    """
    with suppress(metadata.PackageNotFoundError):
        for url in metadata.metadata("mailglass-reconcile").get_all("Project-URL") or ():
            label, _, address = url.partition(", ")
            if label == "Source":
                return f"{address}/blob/v{metadata.version('mailglass-reconcile')}/docs/{name}"
    return f"docs/{name} in the repository"


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package: from where it was installed itself."""
    with suppress(metadata.PackageNotFoundError):
        # PEP 610: pip and uv write this file unless they take a package from an index.
        if metadata.distribution("mailglass-reconcile").read_text("direct_url.json") is None:
            return f"pip install 'mailglass-reconcile[{extra}]'"
    return f"pip install '.[{extra}]' in a clone of mailglass-reconcile"


def with_local_names(text: str) -> str:
    """Return *text* with backticked commands and with settings as they are called here."""
    for word, local_word in _LocalNames.words.items():
        text = text.replace(word, local_word)
    return text


def format_command(command: str) -> str:
    """Return a command line such as `mailglass-reconcile sweep` with the command's name here, ready to paste."""
    return with_local_names(f"`{command}`").strip("`")


class MailglassReconcileError(Exception):
    """Base class of this package's errors."""

    is_transient = False
    """True if a retry of the same call may succeed."""

    exit_code = 1
    """The exit code of a command that fails with this error."""

    def __init__(self, *arguments: object) -> None:
        """Make the error, whose message has the names of command and settings here; Celery logs the arguments."""
        super().__init__(*(with_local_names(value) if isinstance(value, str) else value for value in arguments))


class ConfigurationError(MailglassReconcileError):
    """A setting is missing or cannot be used; the message names it."""


class UnknownProviderError(ConfigurationError):
    """Webhooks of this provider, or of this tenant, are not received here, or no secret is configured for them."""


class WrongUsageError(ConfigurationError):
    """A setting's value is never allowed, or contradicts another setting; commands exit with 2."""

    exit_code = 2


class DatabaseUnavailableError(MailglassReconcileError):
    """Postgres could not be reached, or went away; nothing uncommitted was kept."""


class RedisUnavailableError(MailglassReconcileError):
    """Redis could not be reached, or refuses; only listening needs it."""


class DatabaseRefusedError(MailglassReconcileError):
    """Postgres answered with an error; the message gives its SQLSTATE."""


class SchemaOutdatedError(MailglassReconcileError):
    """The database lacks what this version needs; run `mailglass-reconcile migrate`."""


class LedgerImmutableError(MailglassReconcileError):
    """An UPDATE, DELETE or TRUNCATE of the append-only ledger was refused (SQLSTATE 45A01)."""


class InvalidArgumentError(MailglassReconcileError, TypeError, ValueError):
    """An argument of a sweep has another name or type, or is out of bounds; nothing was swept."""


class InvalidEventError(MailglassReconcileError, ValueError):
    """An event passed to a writer cannot be recorded; nothing was written."""


class InvalidWebhookError(MailglassReconcileError, ValueError):
    """A webhook's body cannot be read; the message says why and holds nothing of it."""


class BodyTooLargeError(InvalidWebhookError):
    """A webhook's body is larger than its provider's webhooks are."""


class SignatureError(MailglassReconcileError):
    """A webhook's signature, or its user name and password, is missing, wrong or too old."""

    cause = "signature"


def sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE of *error*, or None if the server sent none (a lost connection)."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)  # psycopg2 has the latter


def is_outage(error: DBAPIError) -> bool:
    """Return True if *error* comes from the server's state: a lost connection, a shutdown, a full disk."""
    state = sqlstate(error)
    return error.connection_invalidated or state is None or state in OUTAGE_SQLSTATES or state[:2] == "08"


def is_transient(error: DBAPIError) -> bool:
    """Return True if the same transaction may succeed when tried again."""
    return is_outage(error) or sqlstate(error) in CONTENTION_SQLSTATES


def is_data_error(error: DBAPIError) -> bool:
    """Return True if a few rows may have caused *error*: without them, the same statement may succeed."""
    state = sqlstate(error) or ""
    if state == INSUFFICIENT_PRIVILEGE:  # a policy or a trigger may refuse a single row
        return True
    return not is_transient(error) and state != LOCK_NOT_AVAILABLE and state[:2] not in ("28", "3D", "3F", "42", "57")


def translate(error: DBAPIError) -> MailglassReconcileError:
    """Return this package's exception for *error*, without any value of a row or a URL."""
    translated = _translate(error)
    translated.is_transient = is_transient(error)
    return translated


def _translate(error: DBAPIError) -> MailglassReconcileError:
    state = sqlstate(error)
    if state == LEDGER_IMMUTABLE:
        return LedgerImmutableError("mailglass_events is append-only: UPDATE, DELETE and TRUNCATE are refused")
    if state in _UNDEFINED:
        if function := _trigger_function(error):
            return DatabaseRefusedError(
                f"the trigger function {function} of your application names something without its schema (SQLSTATE"
                f" {state}), and in this package's statements search_path is pg_catalog: name the schema there, or run"
                f" `ALTER FUNCTION {function} SET search_path = public, pg_temp`"
            )
        column = _COLUMN.search(str(error.orig).partition("\n")[0]) if state == UNDEFINED_COLUMN else None
        lacking = f"the column {column[1]}" if column else "a table, column or function"
        return SchemaOutdatedError(
            f"the database lacks {lacking} that this version needs: run `mailglass-reconcile migrate`"
            " (tables outside the schema `public` need MAILGLASS_DATABASE_SCHEMA)"
        )
    if state in _REFUSALS:
        return DatabaseRefusedError(_REFUSALS[state](error))
    if state is None or error.connection_invalidated or state[:2] in ("08", "57", "28", "3D"):
        return unavailable_error(f"SQLSTATE {state}" if state else type(error.orig).__name__)
    return DatabaseRefusedError(f"the database refused a statement (SQLSTATE {state})")


_UNDEFINED = frozenset({UNDEFINED_TABLE, UNDEFINED_COLUMN, UNDEFINED_FUNCTION, UNDEFINED_SCHEMA})

_COLUMN = re.compile(r'column (?:"?\w+"?\.)?"?(\w+)"? ')
"""The column of a statement of ours in Postgres's message, if it is in English."""

_FUNCTION = re.compile(r"""((?:(?:"[^"]+"|[^\s()".]+)\.)?("[^"]+"|[^\s()".]+)\([^()]*\))""")
"""A function with its arguments in the context of a Postgres error, whatever the language of its messages."""


def _trigger_function(error: DBAPIError) -> str | None:
    """Return the application's trigger function that raised *error*, or None if a statement or function of ours did."""
    orig: Any = error.orig
    diagnostics = (
        getattr(orig, "diag", None) or orig.__cause__ or orig
    )  # psycopg's, psycopg2's; asyncpg's, wrapped or not; ours
    innermost = (getattr(diagnostics, "context", None) or "").partition("\n")[0]
    function = _FUNCTION.search(innermost)
    return function[1] if function and not function[2].startswith("mailglass_") else None


def _permission_denied(error: DBAPIError) -> str:
    """Return the sentence for a missing privilege, with the role and the object if they are known."""
    role = getattr(error.orig, "role", None)
    match = _OBJECT.search(str(error.orig).partition("\n")[0])
    return (
        f"permission denied{f' for role {role}' if role else ''}{f' on {match[0]}' if match else ''}: the role lacks a"
        " privilege, or row-level security would hide rows from it (SQLSTATE 42501); see"
        f" {docs_url('roles.md')}"
    )


_OBJECT = re.compile(r"mailglass_[a-z0-9_]+|(?<=permission denied for )schema [a-zA-Z0-9_]+")
"""A table, function or schema in Postgres's message, the only part of it that is repeated."""


def attach_role(error: DBAPIError, connection: Any) -> None:
    """Attach the name of *connection*'s role to *error*, for the message about a missing privilege."""
    if error.orig is not None and sqlstate(error) == INSUFFICIENT_PRIVILEGE:
        driver = getattr(connection.connection, "driver_connection", None)
        user = getattr(getattr(driver, "info", None), "user", None) or connection.engine.url.username
        error.orig.role = user  # type: ignore[attr-defined]


_REFUSALS: Mapping[str | None, Callable[[DBAPIError], str]] = {
    INSUFFICIENT_PRIVILEGE: _permission_denied,
    QUERY_CANCELED: lambda _: "a statement took too long or was cancelled (SQLSTATE 57014): try again",
    DEPENDENT_OBJECTS: lambda _: (
        "another object depends on one of these (SQLSTATE 2BP01): drop it first, then run the command again"
    ),
    READ_ONLY: lambda _: (
        "the server is read-only, as a replica is or `default_transaction_read_only` makes it (SQLSTATE 25006):"
        " set MAILGLASS_DATABASE_URL to the primary"
    ),
    DISK_FULL: lambda _: "the disk of the database is full (SQLSTATE 53100): make room there",
}


def unavailable_error(code: str) -> DatabaseUnavailableError:
    """Return the exception for a server that cannot be reached; *code* is an SQLSTATE or the name of an error."""
    return DatabaseUnavailableError(
        f"cannot reach or use the database ({code}): check MAILGLASS_DATABASE_URL and the server"
    )


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate the database driver's errors inside the block; the chain is cut, because it holds values of rows."""
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError  # noqa: PLC0415 - `--help` needs the settings, not this

    try:
        yield
    except DBAPIError as error:
        raise translate(error) from None
    except NoSuchModuleError:
        raise ConfigurationError("MAILGLASS_DATABASE_URL must be a postgresql:// URL") from None
