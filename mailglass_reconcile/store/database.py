"""Transactions whose settings end with them.

Every transaction of this package is in UTC, sees no schema but Postgres's own unless a statement names one, and is
bounded by lock and statement timeouts; those that write are READ COMMITTED. All of that is set for the transaction
only, so PgBouncer's transaction mode works.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import is_passing, sqlstate
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.engines import ISOLATION

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 4
PAUSE_SECONDS = 0.1
SNAPSHOT = "REPEATABLE READ"

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

# After a fail-over to another server an id may lie in the future, and pg_xact_status refuses it.
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
        """Return the parameters that the driver must be told are texts: drivers other than psycopg ask for types."""
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
    # A colon in the schema's name is not a parameter.
    clause = sa.text(in_schema(statement, schema.replace(":", "\\:")))
    return clause.bindparams(*(sa.bindparam(name, type_=sa.Text()) for name in texts)) if texts else clause


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
        tx = Transaction(connection, settings.database_schema, handlers.recorded_types(settings.hook_types))
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
