"""The steps that a migration is made of; Mailglass continues to write meanwhile.

Each step is a transaction of its own. It waits for a lock only briefly, and asks again if it did not get it; indexes
are built concurrently; the open orphans are filled in batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import (
    CONTENTION_SQLSTATES,
    LOCK_NOT_AVAILABLE,
    DatabaseRefusedError,
    SchemaOutdatedError,
    page,
    sqlstate,
)
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import catalog, repair, schema
from mailglass_reconcile.store.database import Connected, Database, Transaction, in_schema
from mailglass_reconcile.store.engines import connect

LOCK_TIMEOUT_MS = 100
"""Writers queue behind a lock that is waited for; Mailglass's own give up after 500 ms."""
LOCK_PATIENCE_SECONDS = 60
FILL_ORPHANS = 5_000

# Postgres cancels an autovacuum that a session has waited for as long as deadlock_timeout. This lock shuts autovacuum
# out and lets writers in, so it may be waited for that long; the step's own lock then waits for writers alone.
_AUTOVACUUM_PATIENCE = """
SELECT set_config('lock_timeout', (extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000 + 500)
                                  ::int::text, true)
"""
_SHUT_OUT_AUTOVACUUM = "LOCK TABLE {schema}.mailglass_events IN SHARE UPDATE EXCLUSIVE MODE"
_IMPATIENCE = "SELECT set_config('lock_timeout', :milliseconds, true)"

_LEDGER = "SELECT to_regclass(:events) IS NOT NULL"
_COLUMNS = """
SELECT a.attname::text FROM pg_attribute AS a
 WHERE a.attrelid = to_regclass(:table) AND a.attnum > 0 AND NOT a.attisdropped
"""
_IS_PARTITIONED = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(:table) AND relkind = 'p')"

_NO_TIMEOUTS = """
SELECT set_config(name, CASE WHEN :off THEN '0' ELSE reset_val END, false) FROM pg_settings
 WHERE name IN ('lock_timeout', 'statement_timeout', 'transaction_timeout', 'idle_session_timeout')
"""


class Steps:
    """The steps of a migration; a plan prints their SQL and takes none of them."""

    def __init__(
        self, engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool = False
    ) -> None:
        """Prepare steps on the tables that *settings* name; *tell* gets a line for each, or the SQL of a plan."""
        self._engine = engine
        self._settings = settings
        self._tell = tell
        self._plan = plan
        self.before_each: Callable[[], None] = lambda: None
        """Called before each step, which may have to wait for transactions to end."""

    def run(self, title: str, sql: str) -> None:
        """Take one step in one transaction, asking for its locks again until it gets them."""
        text = in_schema(sql, self._settings.database_schema).strip()
        self._title(title)
        if self._plan:
            self._tell(
                f"BEGIN;\nSET LOCAL search_path = pg_catalog, pg_temp;\nSET LOCAL lock_timeout = {LOCK_TIMEOUT_MS};\n"
                f"{text}\nCOMMIT;"
            )
            return
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                with connect(self._engine) as connection, Connected(connection, self._settings).writing() as tx:
                    self._shut_out_autovacuum(tx)
                    connection.execution_options(no_parameters=True).exec_driver_sql(text)
                return
            except DBAPIError as error:
                if sqlstate(error) not in {LOCK_NOT_AVAILABLE, *CONTENTION_SQLSTATES}:
                    raise
                if time.monotonic() > deadline:
                    raise DatabaseRefusedError(
                        f"could not {title}: another transaction held a lock on the table for more than"
                        f" {LOCK_PATIENCE_SECONDS} s; the steps before this one are done, run migrate again later"
                    ) from None
                time.sleep(2 * LOCK_TIMEOUT_MS / 1000)

    def create_table(self, name: str, sql: str, *, columns: Sequence[str]) -> None:
        """Create one of our tables with its indexes; if it is there, check its *columns* and build missing indexes."""
        indexes = [one for one, index in schema.INDEXES.items() if index.table == name]
        with Database(self._engine, self._settings).reading() as tx:
            found = set(tx.execute(_COLUMNS, {"table": tx.name_of(name)}).scalars())
        if not found:
            built = [f"{catalog.creating(one, concurrently=False)};" for one in indexes]
            self.run(f"create {name}", "\n".join([sql.strip(), *built]))
        elif missing := sorted(set(columns) - found):
            raise SchemaOutdatedError(
                f"table {name} lacks {', '.join(missing)}: run `mailglass-reconcile migrate --remove`, then `migrate`"
            )
        else:
            for one in indexes:
                self.create_index(one)

    def create_index(self, name: str) -> None:
        """Build an index without blocking writers, unless it is there; an interrupted build is replaced."""
        table = schema.ALL_INDEXES[name].table
        with Database(self._engine, self._settings).reading() as tx:
            fault = schema.index_faults(tx, {name: schema.ALL_INDEXES[name]}).get(name)
            partitioned = tx.execute(_IS_PARTITIONED, {"table": tx.name_of(table)}).scalar_one()
        if not fault:
            return
        if partitioned and not self._plan:
            steps = page("upgrading.md#a-partitioned-mailglass_deliveries")
            raise DatabaseRefusedError(
                f"table {table} is partitioned: build the index {name} by hand, as {steps} describes,"
                " then run migrate again; the steps before this one are done"
            )
        if fault == schema.INVALID:
            self._outside_transaction(
                f"drop what an interrupted build left of the index {name}",
                f"DROP INDEX CONCURRENTLY {{schema}}.{name}",
            )
        self._outside_transaction(f"build the index {name} concurrently", catalog.creating(name))

    def drop_index(self, name: str) -> None:
        """Drop an index without blocking writers."""
        self._outside_transaction(
            f"drop the index {name} concurrently", f"DROP INDEX CONCURRENTLY IF EXISTS {{schema}}.{name}"
        )

    def fill_open_set(self) -> None:
        """Make the open orphans equal what the ledger says, within the maximum age, in batches."""
        self._title(f"fill the open orphans from the ledger, {FILL_ORPHANS} in a transaction")
        if self._plan:
            self._tell(repair.as_script(self._settings))
            return
        with connect(self._engine) as connection:
            added = repair.add_missing(Connected(connection, self._settings), FILL_ORPHANS)
            settled = repair.remove_settled(Connected(connection, self._settings), FILL_ORPHANS)
        self._tell(f"{added} open orphans were added, {settled} closed ones removed")

    def _title(self, title: str) -> None:
        self.before_each()
        self._tell(f"-- {title}" if self._plan else title)

    def _shut_out_autovacuum(self, tx: Transaction) -> None:
        if tx.execute(_LEDGER, {"events": tx.name_of("mailglass_events")}).scalar_one():
            tx.execute(_AUTOVACUUM_PATIENCE)
            tx.execute(_SHUT_OUT_AUTOVACUUM)
        tx.execute(_IMPATIENCE, {"milliseconds": str(LOCK_TIMEOUT_MS)})

    def _outside_transaction(self, title: str, sql: str) -> None:
        text = in_schema(sql, self._settings.database_schema)
        self._title(title)
        if self._plan:
            self._tell(f"{text};")
            return
        with connect(self._engine).execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(_NO_TIMEOUTS), {"off": True})
            try:
                connection.execution_options(no_parameters=True).exec_driver_sql(text)
            finally:
                connection.execute(sa.text(_NO_TIMEOUTS), {"off": False})
