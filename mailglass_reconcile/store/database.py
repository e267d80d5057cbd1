"""The database handle: an engine with its settings, and the kinds of transactions of this package.

Every transaction is in UTC, has only Postgres's own schema in its search path, and has lock and statement timeouts;
those that write are READ COMMITTED. All of that is set for the transaction only, so PgBouncer's transaction mode works.
Statements use indexes, whatever the planner estimates: statistics may be stale, and then a wrong plan takes minutes.
Where one pass over a table is cheaper, a statement runs in `prefer_scans`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile.errors import (
    AMBIGUOUS_FUNCTION,
    DIVISION_BY_ZERO,
    UNDEFINED_COLUMN,
    UNDEFINED_FUNCTION,
    UNDEFINED_SCHEMA,
    UNDEFINED_TABLE,
    DatabaseRefusedError,
    MailglassReconcileError,
    SchemaOutdatedError,
    database_errors,
    is_transient,
    sqlstate,
)
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.engines import ISOLATION
from mailglass_reconcile.store.limits import LIMITS, Limits
from mailglass_reconcile.store.schema import location, ownership, revision, script
from mailglass_reconcile.store.schema.location import SchemaTables
from mailglass_reconcile.store.schema.ownership import Owned, WrongFunction
from mailglass_reconcile.store.schema.script import SCOPE

logger = logging.getLogger(__name__)

T = TypeVar("T")

NIL = "00000000-0000-0000-0000-000000000000"
"""The nil UUID (RFC 9562), which comes before every id."""
ATTEMPTS = 4
PAUSE_SECONDS = 0.1
SNAPSHOT = "REPEATABLE READ"
LOCK_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 240_000
LINK_LOCK_TIMEOUT_MS = 100
"""Below Postgres's deadlock_timeout of one second: a batch gives up a lock long before it can be in a deadlock."""
LINK_STATEMENT_TIMEOUT_MS = 30_000

# A qualified `unnest` takes one array only.
_SET = """
SELECT pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))
  FROM ROWS FROM (pg_catalog.unnest(CAST(:names AS pg_catalog.text[])),
                  pg_catalog.unnest(CAST(:values AS pg_catalog.text[]))) AS s (name, value)
 WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL
"""

# The session's values are read before the new ones are set: a row of the first is what the second is computed for.
_EXCHANGE = """
WITH sessions AS MATERIALIZED (
  SELECT pg_catalog.array_agg(pg_catalog.current_setting(s.name) ORDER BY s.place) AS settings
    FROM pg_catalog.unnest(CAST(:names AS pg_catalog.text[])) WITH ORDINALITY AS s (name, place)
)
SELECT settings,
       (SELECT pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))
          FROM ROWS FROM (pg_catalog.unnest(CAST(:names AS pg_catalog.text[])),
                          pg_catalog.unnest(CAST(:values AS pg_catalog.text[]))) AS s (name, value))
  FROM sessions
"""

_SCANS = {
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_sort"), "on"),
    **dict.fromkeys(("enable_indexscan", "enable_indexonlyscan", "enable_nestloop"), "off"),
    # A hash that parallel workers share lies in /dev/shm, of which a container has 64 MB.
    "enable_parallel_hash": "off",
    # Parallel workers are made cheap per row, because the planner expects far more rows than there are matches.
    "parallel_tuple_cost": "0.001",
    "work_mem": "64MB",
}
"""The settings under which a statement scans whole tables and joins them by hashing, with more memory."""

_MISSING_TABLES = """
SELECT name FROM unnest(CAST(:tables AS text[])) AS t (name)
 WHERE NOT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE c.relname = t.name AND n.nspname = :schema)
"""

READ_ONLY_SETTINGS = {"transaction_read_only": "on", "restrict_nonsystem_relation_kind": "view, foreign-table"}
"""The settings of a transaction that only reads, of which older servers lack the last."""

_trusted: set[tuple[str, str]] = set()
"""The databases and schemas in which this process may call functions with our names."""


class Function(NamedTuple):
    """A function of the schema, which sets our settings itself, and its arguments, which are all texts.

    If it `catches` errors, its last column describes the failure: such a row voids all others.
    """

    name: str
    arguments: tuple[str, ...]
    catches: bool = False

    @property
    def statement(self) -> str:
        """The statement that calls it, with its arguments as parameters."""
        arguments = ", ".join(f"CAST(:{name} AS pg_catalog.text)" for name in self.arguments)
        return f"SELECT * FROM {{schema}}.{self.name}({arguments})"  # noqa: S608 - names of this package


class CaughtError(Exception):
    """An error that a function of the schema caught, with the attributes of a driver's error."""

    def __init__(self, failure: str) -> None:
        facts = json.loads(failure)
        super().__init__(facts["message"] or "")
        self.sqlstate, self.context = facts["sqlstate"], facts["context"]


class SessionTransaction:
    """A transaction under its session's own settings, in which only functions of the schema are called.

    The session's search_path may name a schema in which others create objects, and an overload there can be a better
    match than Postgres's own function or operator. So the statements here, and no others, are sent before our
    search_path is set: they name every function and type with its schema, and have no operator.
    """

    def __init__(self, connection: sa.Connection, settings: Settings, limits: Limits = LIMITS) -> None:
        self.connection = connection
        self.settings = settings
        self.limits = limits
        self.schema = settings.database_schema
        self._infers_types = connection.dialect.driver.startswith("psycopg")

    def call(self, function: Function, parameters: Mapping[str, str | None]) -> Sequence[Any]:
        """Return the rows of a function, or raise the error that it caught."""
        self.require_ours()
        rows = self._send(function.statement, parameters).all()
        if not function.catches:
            return rows
        for row in rows:
            if row[-1] is not None:
                raise DBAPIError(function.statement, None, CaughtError(row[-1]), hide_parameters=True)
        return [row[:-1] for row in rows]

    def set(self, values: Mapping[str, str]) -> None:
        """Change settings until the transaction or the savepoint ends."""
        self._send(_SET, _settings_parameters(values))

    def find_owned(self) -> Owned:
        """Return what the catalog says about the relations with our names."""
        parameters = {"schema": self.schema, "tables": array_literal(ownership.TABLES)}
        return ownership.read(self._send(ownership.FIND, parameters).one())

    def require_ours(self) -> None:
        """Raise an error unless the tables and functions are ours; asked once in a process for each database."""
        place = (engines.database_identity(self.connection.engine), self.schema)
        if place not in _trusted:
            self.find_owned().require_migrated(self.schema)
            planted = [function for function in self.find_wrong_functions() if not function.has_ours]
            ownership.refuse(self.schema, list(map(str, planted)))
            _trusted.add(place)

    def find_wrong_functions(self) -> list[WrongFunction]:
        """Return the functions with our names that are not ours."""
        parameters = {"schema": self.schema, "functions": array_literal(ownership.FUNCTIONS)}
        return [WrongFunction(*row) for row in self._send(ownership.FIND_FUNCTIONS, parameters)]

    def exchange(self, values: Mapping[str, str]) -> dict[str, str]:
        """Change settings as `set` does, and return them as they were."""
        return dict(zip(values, self._send(_EXCHANGE, _settings_parameters(values)).one().settings, strict=True))

    def _send(self, statement: str, parameters: Mapping[str, Any]) -> sa.CursorResult[*tuple[Any, ...]]:
        if self._infers_types:  # a compiled statement costs a quarter less
            return self.connection.exec_driver_sql(compile_for_psycopg(statement, self.schema), parameters)
        return self.connection.execute(_text(statement, self.schema, self._texts(parameters)), parameters)

    def _texts(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the parameters that must be declared as text: drivers other than psycopg need their types."""
        return tuple(name for name, value in parameters.items() if isinstance(value, str))


class Transaction(SessionTransaction):
    """A transaction in this package's scope, whose statements name the tables with their schema."""

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one statement; `{schema}` in it stands for the quoted schema, `:name` for a parameter."""
        return self._send(statement, dict(parameters or {}))

    def reading(self) -> AbstractContextManager[Transaction]:
        """Return a block that reads in this transaction, for what takes a `Reading`."""
        return nullcontext(self)

    def begin_savepoint(self) -> None:
        """Do nothing: our own transactions are rolled back as a whole (a caller's sets a savepoint here)."""

    def revision(self, owned: Owned | None = None) -> str | None:
        """Return the revision that the database is at, or None if it is not migrated."""
        is_there = revision.VERSION_TABLE in (owned or self.find_owned()).tables
        version: str | None = self.execute(revision.READ).scalar_one() if is_there else None
        return version

    def has(self, table: str) -> bool:
        """Return True if the schema has this table of ours, and no other role has planted it."""
        return table in self.find_owned().tables

    def load_schemas(self) -> list[SchemaTables]:
        """Return the schemas of the database that have tables of Mailglass's or ours."""
        ours = array_literal([*revision.TABLES, revision.VERSION_TABLE])
        return [SchemaTables(*row) for row in self.execute(location.FIND, {"ours": ours})]

    def find_creators(self) -> list[str]:
        """Return the roles, quoted, that may create objects in the schema, and own neither it nor the ledger."""
        return list(self.execute(ownership.FIND_CREATORS, {"schema": self.schema}).scalars())

    def refuse_overloads(self) -> None:
        """Raise an error that names an overload of a function of ours, if there is one."""
        for function in self.find_wrong_functions():
            if function.is_overloaded:
                raise DatabaseRefusedError(f"{function}: drop it") from None

    def name_of(self, relation: str) -> str:
        """Return a table's or an index's quoted name with its schema, for `to_regclass`."""
        return in_schema(f"{{schema}}.{relation}", self.schema)

    def names_of(self, *tables: str) -> dict[str, str]:
        """Return the result of `name_of` for each of *tables*, which are named without `mailglass_`."""
        return {table: self.name_of(f"mailglass_{table}") for table in tables}


class _OwnTransaction(Transaction):
    """A transaction on a connection in autocommit mode, where a statement without one would be committed by itself."""

    def _send(self, statement: str, parameters: Mapping[str, Any]) -> sa.CursorResult[*tuple[Any, ...]]:
        driver: Any = self.connection.connection.driver_connection
        if driver.pgconn.transaction_status == _IDLE:
            raise RuntimeError("the transaction has ended")
        return super()._send(statement, parameters)


_IDLE = 0
"""libpq's PQTRANS_IDLE: the connection is in no transaction."""

Reading = Callable[[], AbstractContextManager[Transaction]]
"""Begins a transaction that reads, or returns the caller's: `OpenConnection.reading` or `Transaction.reading`."""


def uuid7() -> str:
    """Return a new UUIDv7 (RFC 9562), which sorts by its millisecond, as Mailglass's ids do."""
    return uuid7s(1)[0]


def uuid7s(count: int) -> list[str]:
    """Return *count* new UUIDv7s, in no order among themselves."""
    ms, digits = f"{time.time_ns() // 1_000_000:012x}", f"{_random.getrandbits(80 * count):0{20 * count}x}"
    return [
        f"{ms[:8]}-{ms[8:]}-7{bits[:3]}-{_VARIANT[bits[3]]}{bits[4:7]}-{bits[7:19]}"
        for bits in (digits[n : n + 20] for n in range(0, 20 * count, 20))
    ]


# Not os.urandom: a system call releases the GIL, which the background thread may then hold for milliseconds. Ids are no
# secrets: their random bits only need to differ between processes.
_random = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_random.seed)

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The digit of the UUID's variant for each random digit."""


def min_uuid7(seconds_ago: float) -> str:
    """Return the lowest UUIDv7 of a time, by this machine's clock."""
    return f"{max(0, int((time.time() - seconds_ago) * 1000)):012x}{'0' * 20}"


def uuid7_bounds(seconds: float) -> dict[str, str]:
    """Return the bounds of the UUIDv7s of the last *seconds* and the next minute, because clocks differ."""
    return {"after_id": min_uuid7(seconds), "until_id": min_uuid7(-60)}


def in_schema(sql: str, schema: str) -> str:
    """Return *sql* with the quoted *schema* for `{schema}`, and the recipient's key for `{recipient_key}`."""
    if script.RECIPIENT_KEY in sql:
        sql = sql.replace(script.RECIPIENT_KEY, script.recipient_key())
    return sql.replace("{schema}", f'"{schema}"')


def array_literal(texts: Iterable[str | None]) -> str:
    """Return a Postgres array as one string, because psycopg converts lists slowly."""
    texts = list(texts)
    if texts and None not in texts:
        joined = '","'.join(texts)  # type: ignore[arg-type]
        if "\\" not in joined and joined.count('"') == 2 * (len(texts) - 1):
            return f'{{"{joined}"}}'
    return "{" + ",".join("NULL" if text is None else _quote(text) for text in texts) + "}"


def text_or_none(value: object) -> str | None:
    """Return a value as an element for `array_literal`: a text, or None."""
    return None if value is None else str(value)


def _settings_parameters(values: Mapping[str, str]) -> dict[str, str]:
    return {"names": array_literal(values), "values": array_literal(values.values())}


def _begin_text(isolation: str, scope: Mapping[str, str]) -> str:
    """Return one message, without parameters, so that a transaction begins in one round trip."""
    settings = ", ".join(
        f"CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL"
        f" THEN pg_catalog.set_config('{name}', '{value}', true) END"
        for name, value in scope.items()
    )
    return f"BEGIN ISOLATION LEVEL {isolation}; SELECT {settings}"


@cache
def _refusal_text(schema: str) -> str:
    return ownership.REFUSE.format(schema=schema.replace("'", "''"), tables=array_literal(ownership.TABLES))


def column_arrays(names: Sequence[str], rows: Iterable[Sequence[str | None]]) -> dict[str, str]:
    """Return *rows*, at least one, as parameters: an array of one column for each of *names*."""
    return dict(zip(names, map(array_literal, zip(*rows, strict=True)), strict=True))


def _quote(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


@lru_cache(maxsize=512)
def _text(statement: str, schema: str, texts: tuple[str, ...]) -> sa.TextClause:
    clause = sa.text(in_schema(statement, schema))
    return clause.bindparams(*(sa.bindparam(name, type_=sa.Text()) for name in texts)) if texts else clause


@lru_cache(maxsize=512)
def compile_for_psycopg(statement: str, schema: str) -> str:
    """Return a statement compiled and without comments: psycopg parses one over 4,096 characters at each execution."""
    text = str(_text(statement, schema, ()).compile(dialect=_psycopg()))
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line and not line.startswith("--"))


@cache
def _psycopg() -> sa.Dialect:
    return sa.make_url("postgresql+psycopg://").get_dialect()()


class OpenConnection:
    """An open connection, on which the kinds of transactions of this package can begin."""

    def __init__(self, connection: sa.Connection, settings: Settings, limits: Limits = LIMITS) -> None:
        self.connection = connection
        self.settings = settings
        self.limits = limits
        # Only the owner of a table could replace it after the first transaction.
        self._has_checked_owners = False

    def reading(self, timeout_ms: int = STATEMENT_TIMEOUT_MS) -> AbstractContextManager[Transaction]:
        """Begin a read-only transaction on one snapshot (REPEATABLE READ).

        Sorting is disabled, so that ordered statements with a limit walk an index.
        """
        return self._begin(SNAPSHOT, timeout_ms, min(timeout_ms, LOCK_TIMEOUT_MS), read_only=True)

    def reading_catalog(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction as `reading`, for the catalog, and for tables that `Transaction.has` confirms."""
        return self._begin(SNAPSHOT, STATEMENT_TIMEOUT_MS, LOCK_TIMEOUT_MS, read_only=True, is_of_catalog=True)

    def writing(
        self, timeout_ms: int = STATEMENT_TIMEOUT_MS, *, unwaited: bool = False
    ) -> AbstractContextManager[Transaction]:
        """Begin a transaction that may write; it is committed at the end, and rolled back if the block raises.

        Args:
            timeout_ms: The timeout of each statement; that of a lock is at most as long.
            unwaited: Commit asynchronously, without waiting for the disk or a replica: for rows that a crash may lose.
        """
        return self._begin(ISOLATION, timeout_ms, min(timeout_ms, LOCK_TIMEOUT_MS), unwaited=unwaited)

    def linking(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction that links, with short timeouts."""
        return self._begin(ISOLATION, LINK_STATEMENT_TIMEOUT_MS, LINK_LOCK_TIMEOUT_MS)

    @contextmanager
    def without_settings(self) -> Iterator[SessionTransaction]:
        """Begin a transaction without our settings, for functions of the schema, which set them themselves."""
        if self.connection.get_execution_options().get("isolation_level") != ISOLATION:
            self.connection.execution_options(isolation_level=ISOLATION)
        with self.connection.begin():
            yield SessionTransaction(self.connection, self.settings, self.limits)

    @contextmanager
    def _begin(
        self,
        isolation: str,
        statement_timeout_ms: int,
        lock_timeout_ms: int,
        *,
        read_only: bool = False,
        unwaited: bool = False,
        is_of_catalog: bool = False,
    ) -> Iterator[Transaction]:
        scope = {
            **SCOPE,
            "client_encoding": "UTF8",
            "lock_timeout": str(max(1, lock_timeout_ms)),
            "statement_timeout": str(max(1, statement_timeout_ms)),
            "enable_sort": "off" if read_only else "on",
        }
        if read_only:
            scope |= READ_ONLY_SETTINGS
        if unwaited:
            scope["synchronous_commit"] = "off"
        is_psycopg, has_begun = self.connection.dialect.driver == "psycopg", False
        begin = self._begin_at_once if is_psycopg else self._begin_by_driver
        try:
            with begin(isolation, scope, checks_owners=not (self._has_checked_owners or is_of_catalog)) as tx:
                has_begun, self._has_checked_owners = True, self._has_checked_owners or not is_of_catalog
                yield tx
        except DBAPIError as error:
            if not has_begun and sqlstate(error) == DIVISION_BY_ZERO:
                with self.reading_catalog() as tx:
                    tx.find_owned().refuse_foreign(tx.schema)
            if sqlstate(error) == AMBIGUOUS_FUNCTION:
                with suppress(SQLAlchemyError), self.reading_catalog() as tx:
                    tx.refuse_overloads()
            raise

    @contextmanager
    def _begin_at_once(self, isolation: str, scope: Mapping[str, str], *, checks_owners: bool) -> Iterator[Transaction]:
        """Begin a transaction with its settings in one round trip, on psycopg 3, which begins none in autocommit mode.

        SQLAlchemy ends it, and knows its savepoints.
        """
        driver: Any = self.connection.connection.dbapi_connection
        before, driver.autocommit = driver.autocommit, True
        try:
            with self.connection.begin():
                try:
                    text = _begin_text(isolation, scope)
                    if checks_owners:
                        text += f"; {_refusal_text(self.settings.database_schema)}"
                    self.connection.exec_driver_sql(text, execution_options={"no_parameters": True})
                    yield _OwnTransaction(self.connection, self.settings, self.limits)
                except BaseException:
                    with suppress(Exception):  # a connection that is lost has nothing to undo
                        driver.rollback()  # SQLAlchemy does not, if the engine skips it in autocommit mode
                    raise
        finally:
            if driver.info.transaction_status == _IDLE:
                driver.autocommit = before

    @contextmanager
    def _begin_by_driver(
        self, isolation: str, scope: Mapping[str, str], *, checks_owners: bool
    ) -> Iterator[Transaction]:
        """Begin a transaction as the driver does, for the after-commit actions of an application's own driver."""
        # A connection that was lost and reopened has the server's default isolation level again.
        self.connection.execution_options(isolation_level=isolation)
        with self.connection.begin():
            tx = Transaction(self.connection, self.settings, self.limits)
            tx.set(scope)
            if checks_owners:
                tx.find_owned().refuse_foreign(tx.schema)
            yield tx

    def cancel(self) -> None:
        """Cancel the statement that another thread runs on this connection."""
        with suppress(Exception):  # it may have ended
            cast("Any", self.connection.connection.dbapi_connection).cancel()

    def in_batches(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Repeat a statement that changes at most `:size` rows, a batch, each time in its own transaction.

        Stop when it changes fewer rows than that, and return the number of all changed rows.
        """
        changed, size = 0, self.limits.batch_rows
        while True:
            with self.writing() as tx:
                rows: int = tx.execute(statement, {**parameters, "size": size}).rowcount
            changed += rows
            if rows < size:
                return changed

    def in_pages(
        self, statement: str, cursor: Mapping[str, Any], parameters: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[dict[str, Any]]:
        """Repeat a statement from a cursor on, each time in its own transaction, and yield its row.

        The row has the next cursor, and counts or ids. After the last page there is no row, or the cursor has None.
        A page has `:size` rows, a batch unless it is among the parameters.
        """
        parameters = {"size": self.limits.batch_rows, **parameters}

        def next_page() -> sa.RowMapping | None:
            with self.writing() as tx:
                return tx.execute(statement, {**parameters, **cursor}).mappings().one_or_none()

        # The cursor moves after the commit, so that a page that failed can be retried.
        while None not in cursor.values() and (page := with_retries(next_page)):
            yield dict(page)
            cursor = {name: page[name] for name in cursor}


class Database:
    """An installation's database: an engine, the settings, and the limits of the work on it."""

    def __init__(self, engine: sa.Engine, settings: Settings, limits: Limits = LIMITS) -> None:
        self.engine = engine
        self.settings = settings
        self.limits = limits

    @contextmanager
    def connect(self) -> Iterator[OpenConnection]:
        """Open a connection for the block."""
        with database_errors(), engines.connect(self.engine) as connection:
            connected = OpenConnection(connection, self.settings, self.limits)
            with _explaining_schema_errors(connected.reading_catalog):
                yield connected

    def explaining_schema_errors(self) -> AbstractContextManager[None]:
        """Raise the error of `require_revision` for one of the block that comes from another schema or revision."""
        return _explaining_schema_errors(self.reading_catalog)

    @contextmanager
    def second_connection(self) -> Iterator[OpenConnection | None]:
        """Open a connection outside the engine's pool for the block; yield None if the server refuses it.

        Errors of the block are not translated.
        """
        with engines.temporary_engine(self.engine) as engine:
            try:
                connection = engines.connect(engine)
            except MailglassReconcileError as error:
                logger.info("a sweep does without a second connection: %s", error)
                yield None
                return
            with connection:
                yield OpenConnection(connection, self.settings, self.limits)

    @contextmanager
    def reading(self, timeout_ms: int = STATEMENT_TIMEOUT_MS) -> Iterator[Transaction]:
        """Begin a transaction as `OpenConnection.reading`, on a new connection."""
        with self.connect() as connected, connected.reading(timeout_ms) as tx:
            yield tx

    @contextmanager
    def reading_catalog(self) -> Iterator[Transaction]:
        """Begin a transaction as `OpenConnection.reading_catalog`, on a new connection."""
        with self.connect() as connected, connected.reading_catalog() as tx:
            yield tx

    @contextmanager
    def writing(self, timeout_ms: int = STATEMENT_TIMEOUT_MS) -> Iterator[Transaction]:
        """Begin a transaction as `OpenConnection.writing`, on a new connection."""
        with self.connect() as connected, connected.writing(timeout_ms) as tx:
            yield tx


@contextmanager
def _explaining_schema_errors(reading_catalog: Reading) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_schema_error(error):
            with suppress(SQLAlchemyError), reading_catalog() as tx:
                require_revision(tx)
        raise


def is_schema_error(error: BaseException) -> bool:
    """Return True if *error* may mean that the schema has other tables or functions than this version needs."""
    is_undefined = isinstance(error, DBAPIError) and sqlstate(error) in (
        UNDEFINED_TABLE,
        UNDEFINED_COLUMN,
        UNDEFINED_FUNCTION,
        UNDEFINED_SCHEMA,
        AMBIGUOUS_FUNCTION,
    )
    return is_undefined or isinstance(error, SchemaOutdatedError)


def require_revision(tx: Transaction) -> None:
    """Raise an error if a function of ours is overloaded, Mailglass's tables have moved away, or ours are outdated."""
    tx.refuse_overloads()
    if relocation := location.find_relocation(tx.load_schemas(), tx.schema):
        raise SchemaOutdatedError(str(relocation)) from None
    owned = tx.find_owned()
    if version := tx.revision(owned):
        if mismatch := revision.find_mismatch(version if owned.has_ledger else None):
            raise SchemaOutdatedError(str(mismatch)) from None
        missing = tx.execute(_MISSING_TABLES, {"tables": array_literal(revision.TABLES), "schema": tx.schema}).scalars()
        if table := missing.first():
            raise SchemaOutdatedError(f"table {table} is missing: {revision.MAKE_AGAIN}") from None


def prefer_scans(tx: Transaction) -> AbstractContextManager[None]:
    """Make the block's statements scan whole tables and join them by hashing, with more memory."""
    return _use_settings(tx, _SCANS)


def trust_statistics(tx: Transaction) -> AbstractContextManager[None]:
    """Let the planner choose between an index and a scan with a sort for the block's statements.

    Use it for statements that are cheap either way, because statistics may be stale.
    """
    return _use_settings(tx, {"enable_seqscan": "on", "enable_sort": "on"})


@contextmanager
def _use_settings(tx: Transaction, values: Mapping[str, str]) -> Iterator[None]:
    """Change settings for the block; if it raises, the transaction is rolled back, and the settings with it."""
    previous = tx.exchange(values)
    yield
    tx.set(previous)


def with_retries(action: Callable[[], T]) -> T:
    """Return the result of *action*; retry it after a transient error, such as a deadlock, up to four attempts."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except DBAPIError as error:
            if not is_transient(error):
                raise
            logger.warning("trying again after SQLSTATE %s, attempt %d", sqlstate(error), attempt)
            time.sleep(PAUSE_SECONDS * attempt)
    return action()
