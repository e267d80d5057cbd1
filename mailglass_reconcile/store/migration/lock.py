"""The advisory lock that allows one migration of a database at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Connected, Transaction
from mailglass_reconcile.store.engines import connect

TIMEOUT_SECONDS = 60

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('mailglass_reconcile migrate'))"

# The transaction that holds the lock is idle for as long as the migration takes. Older servers lack some of these.
_NO_TIMEOUTS = """
SELECT set_config(name, '0', true) FROM pg_settings
 WHERE name IN ('transaction_timeout', 'idle_in_transaction_session_timeout')
"""

_HOLDER = """
SELECT a.pid, a.usename::text AS role, a.application_name AS application
  FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (l.classid::bigint << 32) | l.objid::bigint = hashtext('mailglass_reconcile migrate')::bigint
"""


@contextmanager
def migration_lock(engine: sa.Engine, settings: Settings) -> Iterator[None]:
    """Hold the lock of migrations while the block runs; wait for it for up to a minute.

    It is polled, because a session that waits in a statement would block a concurrent index build.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with connect(engine) as connection:
        while True:
            with Connected(connection, settings).writing() as tx:
                tx.execute(_NO_TIMEOUTS)
                if tx.execute(_TRY_LOCK).scalar_one():
                    yield
                    return
                if time.monotonic() > deadline:
                    raise DatabaseRefusedError(_describe_holder(tx))
            time.sleep(0.2)


def _describe_holder(tx: Transaction) -> str:
    holder = tx.execute(_HOLDER).one_or_none()
    if holder is None:
        return "another session held the lock of migrations: run migrate again"
    return (
        f"process {holder.pid} of role {holder.role!r}, application {holder.application!r}, holds the lock of"
        f" migrations: wait until it ends, or end it with SELECT pg_terminate_backend({holder.pid})"
    )
