"""The way to Postgres: an engine from a URL, and transactions whose settings end with them.

Every transaction of this package is in UTC, sees no schema but Postgres's own unless a statement names one, and is
bounded by lock and statement timeouts; those that write are READ COMMITTED. All of that is set for the transaction
only, so PgBouncer's transaction mode works.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from mailglass_reconcile import event_types, unreachable
from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    LedgerImmutableError,
    database_errors,
    is_passing,
    sqlstate,
    translated,
)
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.unreachable import Server

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5
ATTEMPTS = 4
PAUSE_SECONDS = 0.1
ISOLATION = "READ COMMITTED"
SNAPSHOT = "REPEATABLE READ"

_SERVER = "mailglass_reconcile.server"

SEARCH_PATH = "pg_catalog, pg_temp"
"""Nobody's functions, operators or tables can take the place of Postgres's own: statements name tables with schema."""

_SET_SCOPE = """
SELECT set_config('client_encoding', 'UTF8', true),
       set_config('search_path', :search_path, true),
       set_config('TimeZone', 'UTC', true),
       set_config('row_security', 'off', true),
       set_config('array_nulls', 'on', true),
       set_config('lock_timeout', :lock_timeout, true),
       set_config('statement_timeout', :statement_timeout, true),
       set_config('transaction_read_only', coalesce(:read_only, current_setting('transaction_read_only')), true),
       set_config('jit', 'off', true),
       set_config('enable_seqscan', :scans, true),
       set_config('enable_hashjoin', :scans, true),
       set_config('enable_mergejoin', :scans, true),
       set_config('enable_bitmapscan', :scans, true),
       set_config('enable_sort', :sorts, true),
       set_config('mailglass_reconcile.removes_itself', :removes_itself, true),
       CASE WHEN :names_itself THEN pg_current_xact_id()::text END AS xact_id
"""

# After a fail-over to another server an id may lie in the future, and pg_xact_status refuses such a one.
_IN_PROGRESS = """
SELECT CASE WHEN x.id < pg_current_xact_id() THEN pg_xact_status(x.id) = 'in progress' END
  FROM (SELECT CAST(CAST(:xact_id AS text) AS xid8) AS id) AS x
"""

_CHOOSE_PATH = """
SELECT current_setting('work_mem') AS work_mem,
       set_config('enable_seqscan', :scans, true), set_config('enable_hashjoin', :scans, true),
       set_config('enable_sort', :scans, true),
       set_config('enable_nestloop', :probes, true), set_config('work_mem', :memory, true)
"""

_BORROW_SCOPE = """
SELECT current_setting('client_encoding') AS client_encoding, current_setting('search_path') AS search_path,
       current_setting('TimeZone') AS time_zone, current_setting('row_security') AS row_security,
       current_setting('array_nulls') AS array_nulls, current_setting('enable_seqscan') AS seqscan,
       current_setting('enable_hashjoin') AS hashjoin, current_setting('enable_mergejoin') AS mergejoin,
       current_setting('enable_bitmapscan') AS bitmapscan, set_config('enable_bitmapscan', 'off', true),
       set_config('client_encoding', 'UTF8', true), set_config('search_path', :path, true),
       set_config('TimeZone', 'UTC', true), set_config('row_security', 'off', true),
       set_config('array_nulls', 'on', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)
"""

_RETURN_SCOPE = """
SELECT set_config('search_path', :search_path, true), set_config('TimeZone', :time_zone, true),
       set_config('row_security', :row_security, true), set_config('array_nulls', :array_nulls, true),
       set_config('enable_seqscan', :seqscan, true), set_config('enable_hashjoin', :hashjoin, true),
       set_config('enable_mergejoin', :mergejoin, true), set_config('enable_bitmapscan', :bitmapscan, true),
       set_config('client_encoding', :client_encoding, true)
"""


class Transaction:
    """A transaction in this package's scope, whose statements name the tables with their schema."""

    def __init__(self, connection: sa.Connection, schema: str, hook_types: frozenset[str] = frozenset()) -> None:
        """Use *connection*, which is in a transaction, on the tables of *schema*."""
        self.connection = connection
        self.schema = schema
        self._guesses_types = connection.dialect.driver.startswith("psycopg")
        self.hook_types = hook_types
        """Types of events that are put into the handlers' outbox."""
        self.xact_id: str | None = None
        """The transaction's id for `in_progress`, if it was asked for when it began."""

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one statement; `{schema}` in it stands for the quoted schema, `:name` for a parameter."""
        return self.connection.execute(_text(statement, self.schema, self._texts(parameters or {})), parameters)

    def _texts(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the parameters that the driver is to be told are texts: other drivers than psycopg ask for types."""
        if self._guesses_types:
            return ()
        return tuple(name for name, value in parameters.items() if isinstance(value, str))

    def name_of(self, relation: str) -> str:
        """Return a table's or an index's quoted name with its schema, for `to_regclass`."""
        return in_schema(f"{{schema}}.{relation}", self.schema)


def in_schema(sql: str, schema: str) -> str:
    """Put the quoted *schema* into *sql*, wherever it says `{schema}`; the only place where a statement is made up."""
    return sql.replace("{schema}", '"' + schema.replace('"', '""') + '"')


@lru_cache(maxsize=512)
def _text(statement: str, schema: str, texts: tuple[str, ...]) -> sa.TextClause:
    # A colon of the schema's name is no parameter.
    clause = sa.text(in_schema(statement, schema.replace(":", "\\:")))
    return clause.bindparams(*(sa.bindparam(name, type_=sa.Text()) for name in texts)) if texts else clause


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
    return _engine(
        database_url(settings),
        connect_args={
            "prepare_threshold": None,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "client_encoding": "utf8",
        },
    )


def create_engine_by(connect: Callable[[], Any], server: Callable[[], Server]) -> sa.Engine:
    """Return an engine like that of `create_engine`, whose psycopg connections *connect* opens, to *server*."""
    return _engine("postgresql+psycopg://", creator=connect, execution_options={_SERVER: server})


def _engine(url: URL | str, **options: Any) -> sa.Engine:
    engine = sa.create_engine(url, poolclass=NullPool, use_native_hstore=False, hide_parameters=True, **options)
    sa.event.listen(engine, "handle_error", _immutable_by_name)
    return engine


def _immutable_by_name(context: sa.engine.ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if isinstance(error, sa.exc.DBAPIError) and isinstance(translated(error), LedgerImmutableError):
        raise translated(error) from None


def connect(engine: sa.Engine) -> sa.Connection:
    """Open a connection whose transactions are READ COMMITTED, whatever the server's default.

    Raises:
        DatabaseUnavailableError: The server cannot be reached, or refuses: where, why, and which setting to look at.
        MailglassReconcileError: The engine cannot be used.
    """
    with database_errors():
        try:
            return engine.connect().execution_options(isolation_level=ISOLATION)
        except DBAPIError as error:
            raise DatabaseUnavailableError(unreachable.sentence(error, server_of(engine))) from None


def server_of(engine: sa.Engine) -> Server:
    """Return where *engine* leads to, without user and password; what its URL leaves out, libpq takes elsewhere."""
    known = engine.get_execution_options().get(_SERVER)
    if known is not None:
        found: Server = known()
        return found
    url = engine.url
    asked = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    host = asked.get("host") or url.host or asked.get("hostaddr") or os.environ.get("PGHOST")
    port = asked.get("port") or url.port or os.environ.get("PGPORT") or 5432
    database = url.database or asked.get("dbname") or os.environ.get("PGDATABASE")
    return Server("Postgres", unreachable.place(host, port, database), "MAILGLASS_DATABASE_URL")


def database_of(engine: sa.Engine) -> str:
    """Return what tells the database that *engine* leads to from others; options of the connection do not count."""
    known = engine.get_execution_options().get(_SERVER)
    if known is not None:
        return repr(known())
    url = engine.url
    return repr([url.host, url.port, url.database, *(url.query.get(name) for name in ("host", "port", "dbname"))])


@contextmanager
def transaction(
    connection: sa.Connection,
    settings: Settings,
    *,
    lock_timeout_ms: int = 5_000,
    statement_timeout_ms: int = 240_000,
    read_only: bool = False,
    snapshot: bool = False,
    probes_only: bool = False,
    removes_itself: bool = False,
) -> Iterator[Transaction]:
    """Begin a transaction in this package's scope; commit at the end, roll back if the block raises.

    Args:
        connection: An open connection without a transaction.
        settings: Whose `database_schema` is used.
        lock_timeout_ms: Milliseconds that one lock may be waited for.
        statement_timeout_ms: Milliseconds that one statement may take.
        read_only: Whether Postgres is to refuse every write.
        snapshot: Whether all statements see the tables as they were when the first one began.
        probes_only: Whether every row must be reached through an index, whatever the planner believes of the
            tables: for statements that are made of such probes, where stale statistics would cost minutes. If it
            reads only, rows that are wanted in an order are also read in it, and no more of them than are wanted.
        removes_itself: Whether the transaction takes the orphans that it reconciles out of the open set itself,
            all at once, so that the ledger's trigger does not do it row by row; its id is in `xact_id`.
    """
    # A connection that was lost and opened again has its server's default isolation again.
    connection.execution_options(isolation_level=SNAPSHOT if snapshot else ISOLATION)
    with connection.begin():
        tx = Transaction(connection, settings.database_schema, event_types.chosen(settings.hook_types))
        scope = tx.execute(
            _SET_SCOPE,
            {
                "search_path": SEARCH_PATH,
                "lock_timeout": str(lock_timeout_ms),
                "statement_timeout": str(max(1, statement_timeout_ms)),
                "read_only": "on" if read_only else None,
                "scans": "off" if probes_only else "on",
                "sorts": "off" if probes_only and read_only else "on",
                "removes_itself": "on" if removes_itself else "off",
                "names_itself": removes_itself,
            },
        )
        tx.xact_id = scope.one().xact_id
        yield tx


def in_progress(tx: Transaction, xact_id: str) -> bool:
    """Whether another transaction is neither committed nor rolled back, such as a COMMIT that waits for a stand-by."""
    return bool(tx.execute(_IN_PROGRESS, {"xact_id": xact_id}).scalar_one())


@contextmanager
def by_scans(tx: Transaction) -> Iterator[None]:
    """In a transaction of probes, let statements join tables by hashing them, with the memory for it."""
    before = tx.execute(_CHOOSE_PATH, {"scans": "on", "probes": "off", "memory": "64MB"}).one().work_mem
    yield
    tx.execute(_CHOOSE_PATH, {"scans": "off", "probes": "on", "memory": before})


@contextmanager
def borrowed(connection: sa.Connection, settings: Settings) -> Iterator[Transaction]:
    """Use a caller's transaction in this package's scope, under a savepoint, and give its own settings back at the end.

    If the block raises, it costs the savepoint only: what the block did is undone, the settings with it, and the
    caller's transaction continues.

    Raises:
        ConfigurationError: The connection is in autocommit mode, or psycopg2's own text encoding is not UTF8.
    """
    driver = connection.connection.dbapi_connection
    if getattr(driver, "autocommit", False):
        raise ConfigurationError(
            "the connection's isolation_level is AUTOCOMMIT, so its statements could not be kept or undone together:"
            " pass one in a transaction, such as that of `with engine.begin() as connection`"
        )
    # psycopg2 does not notice that a statement changes the encoding; the other drivers do.
    if getattr(driver, "encoding", "UTF8") != "UTF8":
        raise ConfigurationError(
            'the connection\'s client_encoding is not UTF8: pass `client_encoding="utf8"` to create_engine'
        )
    with connection.begin_nested():
        tx = Transaction(connection, settings.database_schema, event_types.chosen(settings.hook_types))
        before = dict(tx.execute(_BORROW_SCOPE, {"path": SEARCH_PATH}).mappings().one())
        del before["set_config"]
        yield tx
        tx.execute(_RETURN_SCOPE, before)


def with_retries(action: Callable[[], T]) -> T:
    """Return what *action* returns; a lost connection, a deadlock and the like are tried again, up to four times.

    Raises:
        DBAPIError: Another fault, or one that did not pass.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except DBAPIError as error:
            if not is_passing(error):
                raise
            logger.warning("trying again after SQLSTATE %s, attempt %d", sqlstate(error), attempt)
            time.sleep(PAUSE_SECONDS * attempt)
    return action()


def in_batches(connection: sa.Connection, settings: Settings, statement: str, parameters: Mapping[str, Any]) -> int:
    """Run a statement that changes at most `parameters["size"]` rows, each time in a transaction of its own.

    Returns:
        How many rows it changed until it changed fewer than that.
    """
    changed = 0
    while True:
        with transaction(connection, settings) as tx:
            rows: int = tx.execute(statement, parameters).rowcount
        changed += rows
        if rows < parameters["size"]:
            return changed
