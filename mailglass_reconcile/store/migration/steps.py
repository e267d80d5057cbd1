"""The steps that a migration is made of, each of which lets Mailglass go on writing.

Each is a transaction of its own whose lock is asked for with a short timeout and, where it is not to be had,
asked for again; indexes are built concurrently; the open set is filled in batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import CONTENTION_SQLSTATES, LOCK_NOT_AVAILABLE, DatabaseRefusedError, sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import repair
from mailglass_reconcile.store.database import connect, in_schema, transaction

LOCK_TIMEOUT_MS = 100
"""Writers queue behind a lock that is waited for; Mailglass's own give up after 500 ms."""
LOCK_PATIENCE_SECONDS = 60
FILL_ORPHANS = 5_000

_INVALID = "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid)"


class Steps:
    """The steps of a migration; in a plan they are told and not taken."""

    def __init__(
        self, engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool = False
    ) -> None:
        """Prepare steps on the tables that *settings* name; *tell* gets a line for each."""
        self._engine = engine
        self._settings = settings
        self._tell = tell
        self._plan = plan

    def run(self, title: str, sql: str) -> None:
        """Take one step in one transaction, asking for its locks again until they are to be had.

        Raises:
            DatabaseRefusedError: They were not, for a minute.
        """
        self._tell(title)
        text = in_schema(sql, self._settings.database_schema)
        if self._plan:
            self._tell(text.strip())
            return
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                with (
                    connect(self._engine) as connection,
                    transaction(connection, self._settings, lock_timeout_ms=LOCK_TIMEOUT_MS),
                ):
                    connection.execution_options(no_parameters=True).exec_driver_sql(text)
                return
            except DBAPIError as error:
                if sqlstate(error) not in {LOCK_NOT_AVAILABLE, *CONTENTION_SQLSTATES}:
                    raise
                if time.monotonic() > deadline:
                    raise DatabaseRefusedError(
                        f"could not {title}: a transaction of somebody else holds the table for more than"
                        f" {LOCK_PATIENCE_SECONDS} s; what was done so far stays, run this again later"
                    ) from None
                time.sleep(2 * LOCK_TIMEOUT_MS / 1000)

    def index_concurrently(self, name: str, table: str, *columns: str) -> None:
        """Build an index without blocking writers, unless it is there; an interrupted build's is built anew."""
        index = self._index(name, table, *columns)
        with connect(self._engine) as connection, transaction(connection, self._settings, read_only=True) as tx:
            broken = tx.execute(_INVALID, {"name": tx.name_of(name)}).scalar_one()
        if broken:
            self._outside_transaction(
                f"drop what an interrupted build left of the index {name}",
                sa.schema.DropIndex(index, if_exists=True),
            )
        self._outside_transaction(
            f"build the index {name} concurrently", sa.schema.CreateIndex(index, if_not_exists=True)
        )

    def drop_index_concurrently(self, name: str, table: str) -> None:
        """Drop an index without blocking writers."""
        self._outside_transaction(
            f"drop the index {name} concurrently",
            sa.schema.DropIndex(self._index(name, table), if_exists=True),
        )

    def fill_open_set(self) -> None:
        """Make the open set what the ledger says, within the maximum age, in batches."""
        self._tell(f"fill the open set from the ledger, {FILL_ORPHANS} orphans a transaction")
        if not self._plan:
            with connect(self._engine) as connection:
                added = repair.add_missing(connection, self._settings, FILL_ORPHANS)
                settled = repair.remove_settled(connection, self._settings, FILL_ORPHANS)
            self._tell(f"{added} open orphans were added, {settled} settled ones removed")

    def _index(self, name: str, table: str, *columns: str) -> sa.Index:
        """Return an index of columns; one in parentheses is an expression."""
        metadata = sa.MetaData(schema=self._settings.database_schema)
        plain = [column for column in columns or ("id",) if not column.startswith("(")]
        indexed = sa.Table(table, metadata, *(sa.Column(column, sa.Text) for column in plain))
        parts = [sa.text(c) if c.startswith("(") else indexed.c[c] for c in columns or ("id",)]
        return sa.Index(name, *parts, postgresql_concurrently=True)

    def _outside_transaction(self, title: str, ddl: sa.schema.ExecutableDDLElement) -> None:
        self._tell(title)
        if self._plan:
            self._tell(str(ddl.compile(dialect=postgresql.dialect())).strip())  # type: ignore[no-untyped-call]
            return
        with connect(self._engine).execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(ddl)
