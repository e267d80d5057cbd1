"""The way to Postgres: an engine from a URL, a caller's own connection, and the server that it leads to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import NullPool, QueuePool

from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    LedgerImmutableError,
    attach_role,
    database_errors,
    translate,
    unavailable_error,
)
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules.connection_errors import Server
from mailglass_reconcile.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5
ISOLATION = "READ COMMITTED"

_SERVER = "mailglass_reconcile.server"
SEPARATE = "mailglass_reconcile.separate"
"""An engine's execution option: a function that returns the engine to use in its place in another thread."""


def database_url(settings: Settings) -> URL:
    """Return the configured URL, always on psycopg 3."""
    if settings.database_url is None:
        raise ConfigurationError("MAILGLASS_DATABASE_URL is not set; set it to a postgresql:// URL")
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "MAILGLASS_DATABASE_URL is not a URL: it should look like postgresql://user:password@host/database"
        ) from None
    if url.drivername.partition("+")[0] not in ("postgres", "postgresql"):
        raise ConfigurationError("MAILGLASS_DATABASE_URL must be a postgresql:// URL")
    return url.set(drivername="postgresql+psycopg")


def create_engine(settings: Settings, pool_size: int = 0) -> sa.Engine:
    """Return an engine that keeps *pool_size* connections between uses; nothing connects yet.

    Prepared statements are off: PgBouncer in transaction mode may not keep them. A refused write to the ledger
    reaches callers as `LedgerImmutableError`.
    """
    return _engine(
        database_url(settings),
        connect_args={
            "prepare_threshold": None,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "client_encoding": "utf8",
        },
        **(
            {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 0, "pool_pre_ping": True}
            if pool_size
            else {}
        ),
    )


def create_engine_by(connect: Callable[[], Any], server: Callable[[], Server]) -> sa.Engine:
    """Return an engine like that of `create_engine`, whose psycopg connections *connect* opens, to *server*."""
    return _engine("postgresql+psycopg://", creator=connect, execution_options={_SERVER: server})


def _engine(url: URL | str, **options: Any) -> sa.Engine:
    options = {"poolclass": NullPool, "use_native_hstore": False, "hide_parameters": True, **options}
    engine = sa.create_engine(url, **options)
    sa.event.listen(engine, "handle_error", _describe_error)
    return engine


def _describe_error(context: sa.engine.ExceptionContext) -> None:
    """Raise a refused write to the ledger by its name; add the role to a missing privilege."""
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError):
        return
    if context.connection is not None:
        attach_role(error, context.connection)
    if isinstance(translate(error), LedgerImmutableError):
        raise translate(error) from None


def separate(engine: sa.Engine) -> sa.Engine:
    """Return an engine that connects as *engine* does, with a pool of its own; dispose of it after use."""
    options = engine.get_execution_options()
    if SEPARATE in options:
        made: sa.Engine = options[SEPARATE]()
        return made
    kept = {_SERVER: options[_SERVER]} if _SERVER in options else {}
    return sa.Engine(engine.pool.recreate(), engine.dialect, engine.url, execution_options=kept, hide_parameters=True)


def connect(engine: sa.Engine) -> sa.Connection:
    """Open a connection whose transactions are READ COMMITTED, not the server's default."""
    with database_errors():
        try:
            return engine.connect().execution_options(isolation_level=ISOLATION)
        except DBAPIError as error:
            raise DatabaseUnavailableError(connection_errors.describe(error, server_of(engine))) from None


def server_of(engine: sa.Engine) -> Server:
    """Return where *engine* leads to, without user and password; what its URL leaves out, libpq takes elsewhere."""
    known = engine.get_execution_options().get(_SERVER)
    if known is not None:
        found: Server = known()
        return found
    url = engine.url
    options = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    host = options.get("host") or url.host or options.get("hostaddr") or os.environ.get("PGHOST")
    port = options.get("port") or url.port or os.environ.get("PGPORT") or 5432
    database = url.database or options.get("dbname") or os.environ.get("PGDATABASE")
    return Server("Postgres", connection_errors.format_location(host, port, database), "MAILGLASS_DATABASE_URL")


def database_of(engine: sa.Engine) -> str:
    """Return what tells the database that *engine* leads to from others; options of the connection do not count."""
    known = engine.get_execution_options().get(_SERVER)
    if known is not None:
        return repr(known())
    url = engine.url
    return repr([url.host, url.port, url.database, *(url.query.get(name) for name in ("host", "port", "dbname"))])


def connection_of_session(given: object) -> sa.Connection:
    """Return the connection of a SQLAlchemy Session, in its own transaction."""
    session = session_of(given)
    if session is not None:
        try:
            return session.connection()
        except OSError as error:  # asyncpg's own, when nothing listens
            raise unavailable_error(type(error).__name__) from None
    raise TypeError(
        f"pass a SQLAlchemy Connection or Session, not {type(given).__module__}.{type(given).__name__}:"
        " `with engine.begin() as connection`, or in asynchronous code `await session.run_sync(…)`"
    )


def session_of(given: object) -> Session | None:
    """Return the Session that was handed over, or None if it was none."""
    if isinstance(given, scoped_session):
        given = given()
    return given if isinstance(given, Session) else None
