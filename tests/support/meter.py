"""What a call costs: statements, round trips, buffers and rows that are read, CPU time.

A test bounds a cost, and leaves to the code what stays below the bound.
"""

import gc
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from mailglass_reconcile.store.database import Transaction
from waiting import settle

Target = sa.Connection | sa.Engine | type[sa.Engine]


@contextmanager
def before_statements(target: Target, action: Callable[[sa.Connection, str, Any], object]) -> Iterator[None]:
    """Call *action* with connection, text and parameters before each statement of a target; `sa.Engine` is all."""

    def listener(connection: sa.Connection, _cursor: Any, statement: str, parameters: Any, *_arguments: Any) -> None:
        action(connection, statement, parameters)

    sa.event.listen(target, "before_cursor_execute", listener)
    try:
        yield
    finally:
        if target is sa.Engine:
            settle()  # SQLAlchemy does not remove a listener while the background thread runs it
        sa.event.remove(target, "before_cursor_execute", listener)


@contextmanager
def statements(target: Target) -> Iterator[list[str]]:
    """Collect the statements of a connection or an engine."""
    sent: list[str] = []
    with before_statements(target, lambda _connection, statement, _parameters: sent.append(statement)):
        yield sent


@contextmanager
def statements_in_background() -> Iterator[list[str]]:
    """Collect the statements of the background thread."""
    sent: list[str] = []

    def note(_connection: sa.Connection, statement: str, _parameters: Any) -> None:
        if threading.current_thread().name == "mailglass after commit":
            sent.append(statement)

    with before_statements(sa.Engine, note):
        yield sent


@contextmanager
def round_trips(driver: psycopg.Connection) -> Iterator[list[int]]:
    """Count the round trips of a psycopg connection; the number is in the list when the block has ended."""
    counted: list[int] = []
    with tempfile.TemporaryFile() as trace:
        driver.pgconn.trace(trace.fileno())
        try:
            yield counted
        finally:
            driver.pgconn.untrace()
            trace.seek(0)
            counted.append(trace.read().count(b"ReadyForQuery"))


class Traffic(NamedTuple):
    """What was sent on a connection: the string that begins a transaction is no statement, COMMIT is a round trip."""

    statements: int
    transactions: int
    round_trips: int


@contextmanager
def traffic(connection: sa.Connection) -> Iterator[list[Traffic]]:
    """Count what is sent on a connection; the counts are in the list when the block has ended."""
    counted: list[Traffic] = []
    driver: Any = connection.connection.driver_connection
    with statements(connection) as sent, round_trips(driver) as trips:
        yield counted
    begun = sum(statement.startswith("BEGIN ") for statement in sent)
    counted.append(Traffic(len(sent) - begun, begun, trips[0]))


class Plan:
    """Plans that have run: indexes used, kinds of node, tables scanned whole and how often, rows and buffers read.

    A pair that a join compared in vain counts as a row. Those that were read in Postgres's catalog are counted by
    themselves. `most` rows were made by one node. Buffers are those of whole statements.
    """

    def __init__(self) -> None:
        self.indexes: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.read = 0
        self.catalog = 0
        self.most = 0
        self.buffers = 0

    def add(self, node: dict[str, Any]) -> None:
        """Add the plan of a statement."""
        self.buffers += node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
        self._add_node(node)

    def _add_node(self, node: dict[str, Any]) -> None:
        self.kinds[node["Node Type"]] += 1
        self.most = max(self.most, round(node["Actual Rows"] * node["Actual Loops"]))
        of_catalog = node.get("Relation Name", node.get("Index Name", "")).startswith("pg_")
        if "Index Name" in node and not of_catalog:
            self.indexes.add(node["Index Name"])
        if node["Node Type"] == "Seq Scan" and not of_catalog:
            self.whole[node["Relation Name"]] += node["Actual Loops"]
        if "Scan" in node["Node Type"] and ("Relation Name" in node or "Index Name" in node):
            scanned = node["Actual Rows"] + sum(
                node.get(f"Rows Removed by {cause}", 0) for cause in ("Filter", "Index Recheck")
            )
            rows = round(scanned * node["Actual Loops"])
            self.catalog += rows if of_catalog else 0
            self.read += 0 if of_catalog else rows
        self.read += round(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"])
        for child in node.get("Plans", ()):
            self._add_node(child)


_SETTINGS = {
    "log_min_duration": "0", "log_analyze": "on", "log_buffers": "on", "log_format": "json", "log_level": "notice",
}  # fmt: skip


@contextmanager
def plans(
    target: sa.Engine | sa.Connection | psycopg.Connection,
    words: str = "",
    *,
    nested: bool = False,
    with_begin: bool = True,
) -> Iterator[Plan]:
    """Add up the plans of the statements that have *words*, as Postgres runs them.

    Args:
        target: A connection, or an engine, of which connections that are taken from its pool now count.
        words: A part of the text of the statements that count.
        nested: Whether statements within functions are added too; then their buffers count twice.
        with_begin: Whether what begins a transaction counts, which asks the catalog who owns the tables.
    """
    plan = Plan()

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        before, _, document = (diagnostic.message_primary or "").partition("plan:\n")
        if before.startswith("duration"):
            explained = json.loads(document)
            text = explained["Query Text"]
            if words in text and (with_begin or not text.startswith("BEGIN ")):
                plan.add(explained["Plan"])

    drivers: list[psycopg.Connection] = []

    def execute(driver: psycopg.Connection, text: str) -> None:
        was_idle = driver.info.transaction_status == TransactionStatus.IDLE
        psycopg.Cursor(driver).execute(text)
        if was_idle:
            driver.commit()

    def start(driver: psycopg.Connection, *_arguments: object) -> None:
        if driver not in drivers:
            drivers.append(driver)
            driver.add_notice_handler(note)
            changes = {**_SETTINGS, "log_nested_statements": "on" if nested else "off"}
            texts = [f"SET auto_explain.{name} = {value}" for name, value in changes.items()]
            execute(driver, "; ".join(["LOAD 'auto_explain'", *texts]))

    if isinstance(target, sa.Engine):
        sa.event.listen(target, "checkout", start)
    else:
        driver: Any = target.connection.dbapi_connection if isinstance(target, sa.Connection) else target
        start(driver)
    try:
        yield plan
    finally:
        if isinstance(target, sa.Engine):
            sa.event.remove(target, "checkout", start)
        for driver in drivers:
            driver.remove_notice_handler(note)
            if driver.info.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
                execute(driver, "SET auto_explain.log_min_duration = -1")


def plan_of(tx: Transaction, call: Callable[[], object]) -> Plan:
    """Return the plan of all statements of a call, including those within functions, and roll it back."""
    with plans(tx.connection, nested=True) as plan, tx.connection.begin_nested() as savepoint:
        call()
        savepoint.rollback()
    return plan


def cpu(function: Callable[[], object], limit: float = 0) -> float:
    """Return the least CPU seconds of three calls, or those of the first call below *limit*."""
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=1) >= limit:
        if seconds:
            gc.collect()
        started_at = time.thread_time()
        function()
        seconds.append(time.thread_time() - started_at)
    return min(seconds)
