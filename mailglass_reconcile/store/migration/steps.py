"""Run the steps of the schema while Mailglass continues to write.

Each step is one transaction. It waits for a lock only briefly, and is retried if it does not get it; indexes are built
concurrently; the table of open orphans is filled in batches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import CONTENTION_SQLSTATES, LOCK_NOT_AVAILABLE, DatabaseRefusedError, sqlstate
from mailglass_reconcile.store import repair, schema, script
from mailglass_reconcile.store.comparison import INVALID, NOT_FILLED, UNFILLED, Difference
from mailglass_reconcile.store.database import Connected, in_schema
from mailglass_reconcile.store.script import SchemaStep

LOCK_TIMEOUT_MS = 100
"""Writers queue behind a session that waits for a lock; Mailglass's own time out after 500 ms."""
LOCK_RETRY_SECONDS = 60
FILL_BATCH_SIZE = 5_000

OPEN_ORPHANS = "mailglass_open_orphans"

# Postgres cancels an autovacuum that blocks a session for deadlock_timeout. This lock conflicts with autovacuum but not
# with writers, so waiting that long does no harm; the step's own lock then waits for writers only.
_LOCK_TIMEOUT_FOR_AUTOVACUUM = """
SELECT set_config('lock_timeout', (extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000 + 500)
                                  ::int::text, true)
"""
_HAS_LEDGER = "SELECT to_regclass(:events) IS NOT NULL"
_LOCK_OUT_AUTOVACUUM = "LOCK TABLE {schema}.mailglass_events IN SHARE UPDATE EXCLUSIVE MODE"
_SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', :milliseconds, true)"

_NO_TIMEOUTS = """
SELECT set_config(name, CASE WHEN :off THEN '0' ELSE reset_val END, false) FROM pg_settings
 WHERE name IN ('lock_timeout', 'statement_timeout', 'transaction_timeout')
"""

# Functions are created before the tables that they name. A GRANT that repeats the default privilege would be missing
# from a dump.
_WITHOUT_TABLES = "SET LOCAL check_function_bodies = off;\n"
_EXECUTE_BY_ALL = """
DO $$
BEGIN
  IF NOT has_function_privilege('public', '{schema}.NAME'::regproc, 'EXECUTE') THEN
    GRANT EXECUTE ON FUNCTION {schema}.NAME TO PUBLIC;
  END IF;
END;
$$;
"""


class StepRunner:
    """Runs steps on one connection or, for a plan, only prints their SQL."""

    def __init__(self, connected: Connected, tell: Callable[[str], None], *, plan: bool = False) -> None:
        """Run steps in the schema of *connected*; *tell* gets the title of each, or the SQL of a plan."""
        self._connected = connected
        self._connection = connected.connection
        self._schema = connected.settings.database_schema
        self._tell = tell
        self._plan = plan

    def install(self, differences: Iterable[Difference], *, fill: bool) -> None:
        """Run the steps of the differences; with *fill*, always fill the table of open orphans as well."""
        curable = sorted((difference for difference in differences if difference.is_curable), key=_rank)
        new_tables = {
            difference.step.name
            for difference in curable
            if difference.step.kind == "table" and difference.fault != NOT_FILLED
        }
        for difference in curable:
            step = difference.step
            fill = fill or difference.fault == NOT_FILLED or _needs_fill(step)
            if step.kind == "index":
                self._create_index(difference, is_new=step.table in new_tables)
            elif difference.fault != NOT_FILLED:
                self._create(step)
        if fill:
            self._fill()

    def run(self, title: str, sql: str, *, locks_ledger: bool = False) -> None:
        """Run statements in one transaction, which is retried until it gets its locks."""
        self._title(title)
        self._execute(title, sql, locks_ledger=locks_ledger)

    def drop_index(self, name: str) -> None:
        """Drop an index without blocking writers."""
        self._outside_transaction(
            f"drop the index {name} concurrently", f"DROP INDEX CONCURRENTLY IF EXISTS {{schema}}.{name}"
        )

    def _create(self, step: SchemaStep) -> None:
        sql = step.sql
        if step.kind == "function":
            sql = _WITHOUT_TABLES + sql
            if step.is_public:
                sql += _EXECUTE_BY_ALL.replace("NAME", step.name)
        if _needs_fill(step):
            sql += f"\nCOMMENT ON TABLE {{schema}}.{OPEN_ORPHANS} IS '{UNFILLED}';"
        where = f" on {step.table}" if step.kind == "trigger" else ""
        self.run(f"create {step.kind} {step.name}{where}", sql, locks_ledger=step.table == "mailglass_events")

    def _create_index(self, difference: Difference, *, is_new: bool) -> None:
        step = difference.step
        if is_new:
            if not step.name.endswith("_pkey"):  # created with its table
                self.run(f"create index {step.name}", step.statement)
            return
        if difference.is_partitioned and not self._plan:
            raise DatabaseRefusedError(
                f"table {step.table} is partitioned: build the index {step.name} manually, as docs/upgrading.md"
                " describes, then run migrate again; the steps before this one are done"
            )
        if difference.fault == INVALID:
            self._outside_transaction(
                f"drop the invalid index {step.name}, which an interrupted build left",
                f"DROP INDEX CONCURRENTLY {{schema}}.{step.name}",
            )
        self._outside_transaction(f"build the index {step.name} concurrently", step.concurrently.removesuffix(";"))

    def _fill(self) -> None:
        """Fill the table of open orphans from the ledger, within the maximum age, in batches."""
        title = f"fill the open orphans from the ledger, {FILL_BATCH_SIZE} in a transaction"
        self._title(title)
        comment = _COMMENT.findall(script.steps_of_kind("table")[OPEN_ORPHANS].sql)[0]
        if self._plan:
            self._tell(repair.format_script(self._connected.settings))
        else:
            added = repair.add_missing(self._connected, FILL_BATCH_SIZE)
            settled = repair.remove_settled(self._connected, FILL_BATCH_SIZE)
            self._tell(f"{added} open orphans were added, {settled} closed ones removed")
        self._execute(title, comment)

    def _title(self, title: str) -> None:
        self._tell(f"-- {title}" if self._plan else title)

    def _execute(self, title: str, sql: str, *, locks_ledger: bool = False) -> None:
        text = in_schema(sql, self._schema).strip()
        if self._plan:
            self._tell(
                f"BEGIN;\nSET LOCAL search_path = pg_catalog, pg_temp;\nSET LOCAL lock_timeout = {LOCK_TIMEOUT_MS};\n"
                f"{text}\nCOMMIT;"
            )
            return
        deadline = time.monotonic() + LOCK_RETRY_SECONDS
        while True:
            try:
                with self._connected.writing() as tx:
                    if locks_ledger and tx.execute(_HAS_LEDGER, tx.names_of("events")).scalar_one():
                        tx.execute(_LOCK_TIMEOUT_FOR_AUTOVACUUM)
                        tx.execute(_LOCK_OUT_AUTOVACUUM)
                    tx.execute(_SET_LOCK_TIMEOUT, {"milliseconds": str(LOCK_TIMEOUT_MS)})
                    self._connection.execution_options(no_parameters=True).exec_driver_sql(text)
                return
            except DBAPIError as error:
                if sqlstate(error) not in {LOCK_NOT_AVAILABLE, *CONTENTION_SQLSTATES}:
                    raise
                if time.monotonic() > deadline:
                    raise DatabaseRefusedError(
                        f"could not {title}: another transaction held a lock on the table for more than"
                        f" {LOCK_RETRY_SECONDS} s; the steps before this one are done, run migrate again later"
                    ) from None
                time.sleep(2 * LOCK_TIMEOUT_MS / 1000)
            finally:
                self._connection.execution_options(no_parameters=False)

    def _outside_transaction(self, title: str, sql: str) -> None:
        text = in_schema(sql, self._schema)
        self._title(title)
        if self._plan:
            self._tell(f"{text};")
            return
        connection = self._connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            connection.execute(sa.text(_NO_TIMEOUTS), {"off": True})
            try:
                connection.execution_options(no_parameters=True).exec_driver_sql(text)
            finally:
                connection.execution_options(no_parameters=False)
                connection.execute(sa.text(_NO_TIMEOUTS), {"off": False})
        finally:
            connection.rollback()


_COMMENT = re.compile(r"^COMMENT ON TABLE .*?;$", re.MULTILINE | re.DOTALL)


def _needs_fill(step: SchemaStep) -> bool:
    """Return True if orphans may have been missed while the object of a step was missing."""
    return (step.kind == "table" and step.name == OPEN_ORPHANS) or (step.kind == "trigger" and not step.only_on)


def _rank(difference: Difference) -> int:
    """Return the sort key of a step: functions first, Mailglass's tables before ours, indexes of existing tables last.

    The functions come first because they tell an interrupted run that `migrate` made Mailglass's tables.
    """
    step = difference.step
    if step.kind == "table":
        return 1 if step.name in schema.MAILGLASS_TABLES else 2
    is_on_ours = step.only_on or step.table in schema.TABLES
    return {"function": 0, "trigger": 4}.get(step.kind, 3 if is_on_ours else 5)
