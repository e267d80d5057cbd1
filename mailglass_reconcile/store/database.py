"""The way to Postgres: an engine from a URL, and transactions whose settings end with them.

Every transaction of this package is READ COMMITTED, in UTC, on the configured schema, and bounded by lock
and statement timeouts. All of that is set for the transaction only, so PgBouncer's transaction mode works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from mailglass_reconcile.errors import ConfigurationError, LedgerImmutableError, database_errors, translated
from mailglass_reconcile.settings import Settings

CONNECT_TIMEOUT_SECONDS = 5
ISOLATION = "READ COMMITTED"

_SET_SCOPE = sa.text("""
SELECT set_config('search_path', quote_ident(:schema) || ', pg_temp', true),
       set_config('TimeZone', 'UTC', true),
       set_config('lock_timeout', :lock_timeout, true),
       set_config('statement_timeout', :statement_timeout, true),
       set_config('transaction_read_only', coalesce(:read_only, current_setting('transaction_read_only')), true),
       set_config('jit', 'off', true),
       set_config('enable_seqscan', :scans, true),
       set_config('enable_hashjoin', :scans, true),
       set_config('enable_mergejoin', :scans, true),
       set_config('mailglass_reconcile.removes_itself', :removes_itself, true)
""")

_BORROW_SCOPE = sa.text("""
SELECT current_setting('search_path') AS search_path, current_setting('TimeZone') AS time_zone,
       set_config('search_path', quote_ident(:schema) || ', pg_temp', true),
       set_config('TimeZone', 'UTC', true)
""")

_RETURN_SCOPE = sa.text("""
SELECT set_config('search_path', :search_path, true), set_config('TimeZone', :time_zone, true)
""")


def database_url(settings: Settings) -> URL:
    """Return the configured URL, always on psycopg 3.

    Raises:
        ConfigurationError: `MAILGLASS_DATABASE_URL` is missing, no URL, or of another database.
    """
    if settings.database_url is None:
        raise ConfigurationError("MAILGLASS_DATABASE_URL is not set: give it a postgresql:// URL")
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "MAILGLASS_DATABASE_URL is not a URL: it should look like postgresql://user:password@host/database"
        ) from None
    if url.drivername.partition("+")[0] not in ("postgres", "postgresql"):
        raise ConfigurationError("MAILGLASS_DATABASE_URL must be a postgresql:// URL")
    return url.set(drivername="postgresql+psycopg")


def create_engine(settings: Settings) -> sa.Engine:
    """Return an engine that keeps no connection between uses; nothing connects yet.

    Prepared statements are off: PgBouncer in transaction mode may not keep them. A refused write to the ledger
    reaches callers as `LedgerImmutableError`.

    Raises:
        ConfigurationError: As in `database_url`.
    """
    engine = sa.create_engine(
        database_url(settings),
        poolclass=NullPool,
        use_native_hstore=False,
        hide_parameters=True,
        connect_args={"prepare_threshold": None, "connect_timeout": CONNECT_TIMEOUT_SECONDS},
    )
    sa.event.listen(engine, "handle_error", _immutable_by_name)
    return engine


def _immutable_by_name(context: sa.engine.ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if isinstance(error, sa.exc.DBAPIError) and isinstance(translated(error), LedgerImmutableError):
        raise translated(error) from None


def connect(engine: sa.Engine) -> sa.Connection:
    """Open a connection whose transactions are READ COMMITTED, whatever the server's default.

    Raises:
        MailglassReconcileError: The server cannot be reached, or refuses.
    """
    with database_errors():
        return engine.connect().execution_options(isolation_level=ISOLATION)


@contextmanager
def transaction(
    connection: sa.Connection,
    settings: Settings,
    *,
    lock_timeout_ms: int = 5_000,
    statement_timeout_ms: int = 240_000,
    read_only: bool = False,
    probes_only: bool = False,
    removes_itself: bool = False,
) -> Iterator[sa.Connection]:
    """Begin a transaction in this package's scope; commit at the end, roll back where the block raises.

    Args:
        connection: An open connection without a transaction.
        settings: Whose `database_schema` is used.
        lock_timeout_ms: Milliseconds that one lock may be waited for.
        statement_timeout_ms: Milliseconds that one statement may take.
        read_only: Whether Postgres is to refuse every write.
        probes_only: Whether every row is to be reached through an index, whatever the planner believes of the
            tables: for statements that are made of such probes, where stale statistics would cost minutes.
        removes_itself: Whether the transaction takes the orphans that it reconciles out of the open set itself,
            all at once, so that the ledger's trigger need not do it row by row.
    """
    # A connection that was lost and made anew has its server's default again.
    connection.execution_options(isolation_level=ISOLATION)
    with connection.begin():
        connection.execute(
            _SET_SCOPE,
            {
                "schema": settings.database_schema,
                "lock_timeout": str(lock_timeout_ms),
                "statement_timeout": str(max(1, statement_timeout_ms)),
                "read_only": "on" if read_only else None,
                "scans": "off" if probes_only else "on",
                "removes_itself": "on" if removes_itself else "off",
            },
        )
        yield connection


@contextmanager
def borrowed(connection: sa.Connection, settings: Settings) -> Iterator[None]:
    """Use a caller's transaction in this package's scope, and give its own settings back at the end.

    Where the block raises, they are not given back: the caller's transaction is then in error or about to
    roll back, which undoes them.
    """
    before = connection.execute(_BORROW_SCOPE, {"schema": settings.database_schema}).one()
    yield
    connection.execute(_RETURN_SCOPE, {"search_path": before.search_path, "time_zone": before.time_zone})


def in_batches(
    connection: sa.Connection, settings: Settings, statement: sa.TextClause, parameters: Mapping[str, Any]
) -> int:
    """Run a statement that changes at most `parameters["size"]` rows, each time in a transaction of its own.

    Returns:
        How many rows it changed until it changed fewer than that.
    """
    changed = 0
    while True:
        with transaction(connection, settings):
            rows: int = connection.execute(statement, parameters).rowcount
        changed += rows
        if rows < parameters["size"]:
            return changed
