"""Ids made by this package, and the kinds of its transactions."""

import os
import time
import uuid
from contextlib import suppress

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database, uuid7s


def test_ids_are_uuids_of_version_7_that_sort_by_their_millisecond():
    """They follow RFC 9562 and are unique."""
    before = time.time_ns() // 1_000_000
    texts = uuid7s(1_000)
    ids = [uuid.UUID(text) for text in texts]
    assert list(map(str, ids)) == texts
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, uuid.RFC_4122)}
    assert all(before <= id_.int >> 80 <= time.time_ns() // 1_000_000 for id_ in ids)
    assert len({id_.int & (2**62 - 1) for id_ in ids}) == len(ids)


def test_a_forked_child_makes_other_ids_than_its_parent():
    """Otherwise the ledger would take two events for one."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sender, " ".join(uuid7s(3)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(receiver) as pipe:
        os.close(sender)
        words = pipe.read().split()
    assert len(words) == 3
    assert {id_[-16:] for id_ in words}.isdisjoint(id_[-16:] for id_ in uuid7s(3))


def test_a_statement_after_the_end_of_its_transaction_is_refused(db):
    """The connection is in autocommit mode meanwhile, where each statement would be committed by itself."""
    with db.database.connect() as connected:
        with connected.writing() as ended:
            pass
        with pytest.raises(RuntimeError, match="the transaction has ended"):
            ended.execute("SELECT 1")
        with connected.writing() as tx:
            tx.connection.exec_driver_sql("COMMIT")
            with pytest.raises(RuntimeError, match="the transaction has ended"):
                tx.execute("SELECT 1")


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1 / 0"])
def test_after_a_transaction_the_connection_is_idle_and_begins_transactions_by_itself_again(db, statement):
    """An error rolls the transaction back even if the engine does not, because the driver is in autocommit mode."""
    engine = engines.create_engine(db.settings)
    engine.dialect.skip_autocommit_rollback = True
    with Database(engine, db.settings).connect() as connected:
        driver = connected.connection.connection.driver_connection
        with suppress(DBAPIError), connected.writing() as tx:
            assert driver.autocommit
            tx.execute(statement)
        assert (driver.info.transaction_status, driver.autocommit) == (TransactionStatus.IDLE, False)


def test_a_transaction_has_its_isolation_level_and_settings_from_its_first_statement_on(db):
    levels = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    with db.database.connect() as connected:
        with connected.reading() as tx:
            assert tuple(tx.execute(levels).one()) == ("repeatable read", "on")
        with connected.writing() as tx:
            assert tuple(tx.execute(levels).one()) == ("read committed", "off")
            with tx.connection.begin_nested() as savepoint:
                tx.execute("CREATE TEMPORARY TABLE undone ()")
                savepoint.rollback()
            assert tx.execute("SELECT to_regclass('undone')").scalar_one() is None
        assert connected.connection.exec_driver_sql("SHOW search_path").scalar_one() == '"$user", public'
