"""Name the sessions for which a migration waits, from a second connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import OpenConnection

REPORT_SECONDS = 10
"""How long a step waits before it says for whom."""
_POLL_SECONDS = 0.5
"""A lock is waited for during a third of the time only: between the attempts, nothing blocks."""

# A prepared transaction has no process. A role sees the state of sessions of its own only, unless it is a monitor.
_BLOCKERS = """
SELECT b.pid, a.usename::text AS role, a.application_name AS application, a.backend_type, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::int AS seconds
  FROM unnest(pg_blocking_pids(:pid)) AS b (pid)
  LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
 WHERE b.pid <> pg_backend_pid()
 ORDER BY a.xact_start, b.pid LIMIT 3
"""


class BlockerReport:
    """Tells for whom a step of a migration waits, once it has waited for some seconds, and again if others block it."""

    def __init__(self, engine: sa.Engine, settings: Settings, tell: Callable[[str], None], seconds: float) -> None:
        self.latest = ""
        self._engine, self._settings, self._tell, self._seconds = engine, settings, tell, seconds

    @contextmanager
    def watching(self, title: str, pid: int) -> Iterator[None]:
        """Watch the session of process *pid* while the block runs a step."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(title, pid, done), name="mailglass-blockers", daemon=True)
        self.latest = ""
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _watch(self, title: str, pid: int, done: threading.Event) -> None:
        if done.wait(self._seconds):
            return
        # The step goes on whether its blockers can be told or not.
        with (
            suppress(SQLAlchemyError, MailglassReconcileError),
            engines.temporary_engine(self._engine) as separate,
            engines.connect(separate) as connection,
        ):
            connected, told = OpenConnection(connection, self._settings), set[int]()
            while not done.wait(_POLL_SECONDS):
                with connected.reading_catalog() as tx:
                    rows = tx.execute(_BLOCKERS, {"pid": pid}).all()
                pids = {row.pid for row in rows}
                if pids - told:
                    told |= pids
                    self.latest = "; ".join(map(_describe, rows))
                    self._tell(f"warning: still waiting to {title}, for {self.latest}")


def _describe(row: Any) -> str:
    """Return a phrase about a session: who it is, and how to end it."""
    if not row.pid:
        return "a prepared transaction: see pg_prepared_xacts"
    who = f"role {row.role!r}, application {row.application!r}" if row.role else row.backend_type
    state = f", {row.state}" if row.state else ""
    age = f", its transaction open for {row.seconds} s" if row.seconds is not None else ""
    return f"process {row.pid} of {who}{state}{age} (SELECT pg_terminate_backend({row.pid}) ends it)"
