"""Engines: from a URL, with a framework's connections, or a caller's, and the server to which they connect."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
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

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

CONNECT_TIMEOUT_SECONDS = 5
ISOLATION = "READ COMMITTED"

_SEVERAL_HOSTS = re.compile(r"[^:/?#]+://(?:[^/?#]*@)?(?![^/?#]*@)[^/?#]*,")
_SERVER = "mailglass_reconcile.server"
SEPARATE = "mailglass_reconcile.separate"
"""Execution option of an engine: a function that returns the engine to use instead in another thread."""


def database_url(settings: Settings) -> URL:
    """Return the configured URL, always on psycopg 3."""
    if settings.database_url is None:
        is_django = "DJANGO_SETTINGS_MODULE" in os.environ
        hint = "in a Django project with our app, run `manage.py mailglass …`; otherwise " if is_django else ""
        raise ConfigurationError(f"MAILGLASS_DATABASE_URL is not set; {hint}set it to a postgresql:// URL")
    text = settings.database_url.get_secret_value()
    if _SEVERAL_HOSTS.match(text):
        raise ConfigurationError(
            "MAILGLASS_DATABASE_URL names several hosts in libpq's form; write them as"
            " postgresql://user:password@/database?host=HOST1:5432&host=HOST2:5432&target_session_attrs=read-write"
        )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "MAILGLASS_DATABASE_URL is not a URL: it should look like postgresql://user:password@host/database"
        ) from None
    if url.drivername.partition("+")[0] not in ("postgres", "postgresql"):
        raise ConfigurationError("MAILGLASS_DATABASE_URL must be a postgresql:// URL")
    return url.set(drivername="postgresql+psycopg")


def create_engine(
    settings: Settings, pool_size: int = 0, *, connect_seconds: int = CONNECT_TIMEOUT_SECONDS
) -> sa.Engine:
    """Return an engine with a pool of *pool_size* connections, without connecting.

    Prepared statements are off, because PgBouncer's transaction mode may lose them. A refused write to the ledger
    raises `LedgerImmutableError`.
    """
    return _engine(
        database_url(settings),
        connect_args={
            "prepare_threshold": None,
            "connect_timeout": connect_seconds,
            "client_encoding": "utf8",
        },
        **(
            {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 0, "pool_pre_ping": True}
            if pool_size
            else {}
        ),
    )


def create_engine_with(connect: Callable[[], Any], server: Callable[[], Server]) -> sa.Engine:
    """Return an engine like that of `create_engine`, whose connections to *server* the function *connect* opens."""
    return _engine("postgresql+psycopg://", creator=connect, execution_options={_SERVER: server})


def _engine(url: URL | str, **options: Any) -> sa.Engine:
    options = {"poolclass": NullPool, "use_native_hstore": False, "hide_parameters": True, **options}
    engine = sa.create_engine(url, **options)
    sa.event.listen(engine, "handle_error", _describe_error)
    return engine


def _describe_error(context: sa.engine.ExceptionContext) -> None:
    """Raise `LedgerImmutableError` for a refused write to the ledger; attach the role to a missing privilege."""
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError):
        return
    if context.connection is not None:
        attach_role(error, context.connection)
    if isinstance(translate(error), LedgerImmutableError):
        raise translate(error) from None


def separate_engine(engine: sa.Engine) -> sa.Engine:
    """Return an engine that connects as *engine* does, with its own pool; dispose of it after use."""
    options = engine.get_execution_options()
    if SEPARATE in options:
        separate: sa.Engine = options[SEPARATE]()
        return separate
    own_options = {_SERVER: options[_SERVER]} if _SERVER in options else {}
    return sa.Engine(
        engine.pool.recreate(), engine.dialect, engine.url, execution_options=own_options, hide_parameters=True
    )


@contextmanager
def temporary_engine(engine: sa.Engine) -> Iterator[sa.Engine]:
    """Yield a `separate_engine`, and dispose of it after the block."""
    separate = separate_engine(engine)
    try:
        yield separate
    finally:
        separate.dispose()


def connect(engine: sa.Engine) -> sa.Connection:
    """Open a connection whose transactions are READ COMMITTED, not the server's default."""
    with database_errors():
        try:
            return engine.connect().execution_options(isolation_level=ISOLATION)
        except DBAPIError as error:
            raise DatabaseUnavailableError(connection_errors.describe(error, server_of(engine))) from None
        except PoolTimeoutError:
            raise DatabaseUnavailableError(
                "all connections of the connection pool are in use: raise its pool_size, or hold connections for less"
            ) from None


def server_of(engine: sa.Engine) -> Server:
    """Return the server of *engine*, without user and password; libpq's environment fills in what its URL lacks."""
    server_function = engine.get_execution_options().get(_SERVER)
    if server_function is not None:
        server: Server = server_function()
        return server
    url = engine.url
    options = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    host = options.get("host") or url.host or options.get("hostaddr") or os.environ.get("PGHOST")
    port = options.get("port") or url.port or os.environ.get("PGPORT") or 5432
    database = url.database or options.get("dbname") or os.environ.get("PGDATABASE")
    return Server("Postgres", connection_errors.format_location(host, port, database), "MAILGLASS_DATABASE_URL")


def database_identity(engine: sa.Engine) -> str:
    """Return a text that identifies the database of *engine*, whatever the connection's options."""
    server_function = engine.get_execution_options().get(_SERVER)
    if server_function is not None:
        return repr(server_function())
    url = engine.url
    return repr([url.host, url.port, url.database, *(url.query.get(name) for name in ("host", "port", "dbname"))])


def session_connection(value: object) -> sa.Connection:
    """Return the connection of a SQLAlchemy Session, in its transaction; raise TypeError for anything else."""
    session = as_session(value)
    if session is not None:
        try:
            return session.connection()
        except OSError as error:  # asyncpg raises it if nothing listens
            raise unavailable_error(type(error).__name__) from None
    raise _type_error(value)


def engine_of(value: object) -> sa.Engine:
    """Return the engine of a SQLAlchemy Connection or Session; nothing connects or begins."""
    session = as_session(value)
    bind = value if session is None else session.get_bind()
    if isinstance(bind, sa.Engine | sa.Connection):
        return bind.engine
    raise _type_error(value)


def _type_error(value: object) -> TypeError:
    return TypeError(
        f"pass a SQLAlchemy Connection or Session, not {type(value).__module__}.{type(value).__name__}:"
        " `with engine.begin() as connection`, or in asynchronous code `await session.run_sync(…)`"
    )


def as_session(value: object) -> Session | None:
    """Return a Session, or that of a scoped_session; None for anything else."""
    from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - loading it takes 50 ms, and commands have none

    if isinstance(value, scoped_session):
        value = value()
    return value if isinstance(value, Session) else None
