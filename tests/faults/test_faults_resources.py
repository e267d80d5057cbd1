"""Timeouts of every transaction; the checker looks for leftovers after every test."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

import factories
import mailglass_reconcile
from database import Database
from mailglass_reconcile.ops import explanation, status
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database as Handle
from mailglass_reconcile.sweep import reconciler
from marking import slow_unless

pytestmark = [pytest.mark.long, pytest.mark.version_independent]

_BOUNDS = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"


def _explain(db: Database, engine: sa.Engine) -> None:
    orphan = db.value("SELECT event_id::text FROM mailglass_open_orphans LIMIT 1")
    explanation.explain(Handle(engine, db.settings), uuid.UUID(orphan))


WORK: dict[str, Callable[[Database, sa.Engine], object]] = {
    "a sweep": lambda db, engine: mailglass_reconcile.reconcile(),
    "a dry run": lambda db, engine: reconciler.prepare(dry_run=True).run(),
    "a prune": lambda db, engine: mailglass_reconcile.prune(),
    "a look at the status": lambda db, engine: status.load_status(Handle(engine, db.settings)),
    "an explanation": _explain,
}


@pytest.mark.parametrize("name", slow_unless(("a sweep", "a prune").__contains__, WORK))
def test_every_statement_of_a_transaction_has_a_lock_timeout_and_a_statement_timeout(db: Database, name: str) -> None:
    factories.insert_pairs(db, 5)
    factories.orphan(db, factories.postmark("nobody's"))
    observed, unbounded = [], []

    def look(connection: sa.Connection, cursor: Any, sql: str, *unused: object) -> None:
        if cursor.connection.info.transaction_status == TransactionStatus.INTRANS:
            observed.append(sql)
            with cursor.connection.cursor() as own:
                if "0" in own.execute(_BOUNDS).fetchone():
                    unbounded.append(sql)

    engine = engines.create_engine(db.settings)
    sa.event.listen(engine, "after_cursor_execute", look)
    mailglass_reconcile.configure(engine=engine, settings=db.settings)
    WORK[name](db, engine)
    assert observed
    assert unbounded == []
