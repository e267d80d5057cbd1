"""The connection of a migration: its own, with the lock of migrations, under our settings, and patient about locks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import CONTENTION_SQLSTATES, LOCK_NOT_AVAILABLE, DatabaseRefusedError, sqlstate
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import OpenConnection, in_schema
from mailglass_reconcile.store.migration.blockers import REPORT_SECONDS, BlockerReport
from mailglass_reconcile.store.schema import revision

T = TypeVar("T")

TIMEOUT_SECONDS = 60
"""How long a migration waits for another one."""
LOCK_TIMEOUT_MS = 100
"""Writers queue behind a session that waits for a lock; Mailglass's own time out after 500 ms."""
LOCK_RETRY_SECONDS = 60

SETTINGS = f"""
SET search_path = pg_catalog, pg_temp;
SET TimeZone = 'UTC';
SET row_security = off;
SET check_function_bodies = off;
SET lock_timeout = '{LOCK_TIMEOUT_MS}ms';
SELECT set_config('restrict_nonsystem_relation_kind', 'view, foreign-table', false)
 WHERE current_setting('restrict_nonsystem_relation_kind', true) IS NOT NULL;
"""
"""The settings of the session. Alembic's own statements do not qualify Postgres's types and operators.

A migration reads no view; older servers lack the last setting.
"""

PLAN_HEADER = f"""
-- run this with `psql -v ON_ERROR_STOP=1`; if it stops, run --plan again: finished steps are left out
{SETTINGS.strip()}
""".strip()
"""How a plan for psql begins."""

PATIENT = "SET lock_timeout = 0"
"""For what waits without making writers wait: a concurrent build."""
IMPATIENT = f"SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'"

# Older servers lack some of these.
_NO_TIMEOUTS = """
SELECT set_config(name, '0', false) FROM pg_settings
 WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_session_timeout',
                'idle_in_transaction_session_timeout')
"""

_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtext('mailglass_reconcile migrate'))"

_HOLDER = """
SELECT a.pid, a.usename::text AS role, a.application_name AS application
  FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (l.classid::bigint << 32) | l.objid::bigint = hashtext('mailglass_reconcile migrate')::bigint
"""

# Postgres cancels an autovacuum that blocks a session for deadlock_timeout. This lock conflicts with autovacuum but not
# with writers, so waiting that long does no harm.
_LOCK_OUT_AUTOVACUUM = """
DO $$
BEGIN
  PERFORM set_config('lock_timeout', (extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000 + 500)
                                     ::int::text, true);
  EXECUTE (SELECT format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', string_agg(c.oid::regclass::text, ', '))
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = '{name}' AND c.relkind IN ('r', 'p') AND c.relname IN ({tables}));
END $$
"""


class Session:
    """The connection of a migration."""

    def __init__(
        self,
        connection: sa.Connection,
        settings: Settings,
        blockers: BlockerReport,
        retry_seconds: float = LOCK_RETRY_SECONDS,
    ) -> None:
        """Use *connection*, which nothing else uses."""
        self.connection = connection
        self.retry_seconds = retry_seconds
        self._blockers = blockers
        self.connected = OpenConnection(connection, settings)
        self.settings = settings
        with connection.begin():
            self._pid: int = connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()").scalar_one()
        self.is_direct: bool = self._pid == connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]

    def require_lock(self) -> None:
        """Raise an error if a pooler such as PgBouncer may give each transaction to another process of the server."""
        if not self.is_direct:
            raise DatabaseRefusedError(
                "nothing was changed: a migration needs a direct connection, and a pooler such as PgBouncer is between:"
                " set MAILGLASS_DATABASE_URL to the server itself for `mailglass-reconcile migrate`"
            )

    def run(self, title: str, sql: str) -> None:
        """Run statements in one transaction, again until it gets its locks."""

        def transaction() -> None:
            with self.connection.begin():
                self._execute(sql)

        self.retry(title, transaction)

    def run_alone(self, title: str, *statements: str) -> None:
        """Run statements that cannot be in a transaction, and wait for their locks, which keep no writer waiting."""

        def each() -> None:
            self.connection.execution_options(isolation_level="AUTOCOMMIT")
            try:
                for statement in (PATIENT, *statements, IMPATIENT):
                    self._execute(statement)
            finally:
                self.connection.rollback()
                self.connection.execution_options(isolation_level=engines.ISOLATION)

        self.retry(title, each)

    def retry(self, title: str, action: Callable[[], T]) -> T:
        """Return the result of *action*, which is repeated until no other session holds a lock that it needs."""
        with self._blockers.watching(title, self._pid):
            return self._repeat(title, action)

    def _repeat(self, title: str, action: Callable[[], T]) -> T:
        began = time.monotonic()
        while True:
            self.connection.execution_options(isolation_level=engines.ISOLATION)  # a reading before has another one
            try:
                return action()
            except DBAPIError as error:
                self.connection.rollback()
                if sqlstate(error) not in {LOCK_NOT_AVAILABLE, *CONTENTION_SQLSTATES}:
                    raise
                if time.monotonic() - began > self.retry_seconds:
                    raise DatabaseRefusedError(
                        f"could not {title}: {self._blockers.latest or 'another transaction'} held a lock on the table"
                        f" for more than {self.retry_seconds} s; the steps before this one are done, run migrate again"
                        " later"
                    ) from None
            time.sleep(2 * LOCK_TIMEOUT_MS / 1000)
            self._lock_out_autovacuum()

    def _execute(self, sql: str) -> None:
        text = in_schema(sql, self.settings.database_schema).strip()
        # Without parameters, a text may have several statements.
        self.connection.exec_driver_sql(text, execution_options={"no_parameters": True})

    def _lock_out_autovacuum(self) -> None:
        names = ", ".join(f"'{table}'" for table in (*revision.TABLES, *revision.MAILGLASS_TABLES))
        name = self.settings.database_schema.replace("'", "''")
        with suppress(DBAPIError), self.connection.begin():
            self._execute(_LOCK_OUT_AUTOVACUUM.replace("{name}", name).replace("{tables}", names))


@contextmanager
def open_session(
    engine: sa.Engine,
    settings: Settings,
    tell: Callable[[str], None],
    *,
    wait_seconds: float = TIMEOUT_SECONDS,
    retry_seconds: float = LOCK_RETRY_SECONDS,
    report_seconds: float = REPORT_SECONDS,
) -> Iterator[Session]:
    """Open a connection outside the engine's pool that holds the lock of migrations while the block runs.

    It waits for another migration for *wait_seconds*, and for the locks of a step for *retry_seconds*. After
    *report_seconds*, *tell* gets a line that says for whom. Through a pooler, settings and lock would stay with a
    process that others use: then it can only be read.
    """
    with engines.temporary_engine(engine) as separate, engines.connect(separate) as connection:
        blockers = BlockerReport(engine, settings, tell, report_seconds)
        session = Session(connection, settings, blockers, retry_seconds)
        if session.is_direct:
            session.run("begin", SETTINGS + _NO_TIMEOUTS)
            _wait_for_lock(connection, wait_seconds, tell, report_seconds)
        yield session


def _wait_for_lock(
    connection: sa.Connection, seconds: float, tell: Callable[[str], None], report_seconds: float
) -> None:
    """Wait for the lock of migrations for so many seconds; it ends with the connection.

    It is polled, because a session that waits in a statement would block a concurrent index build.
    """
    began, is_told = time.monotonic(), False
    while True:
        with connection.begin():
            if connection.exec_driver_sql(_TRY_LOCK).scalar_one():
                return
            waited = time.monotonic() - began
            if waited > seconds:
                raise DatabaseRefusedError(_describe_holder(connection))
            if waited > report_seconds and not is_told:
                tell(f"warning: still waiting: {_describe_holder(connection)}")
                is_told = True
        time.sleep(0.2)


def _describe_holder(connection: sa.Connection) -> str:
    holder = connection.exec_driver_sql(_HOLDER).one_or_none()
    if holder is None:
        return "another session held the lock of migrations: run migrate again"
    return (
        f"process {holder.pid} of role {holder.role!r}, application {holder.application!r}, holds the lock of"
        f" migrations: wait until it ends, or end it with SELECT pg_terminate_backend({holder.pid})"
    )
