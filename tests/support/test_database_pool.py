"""The database that tests have one after the other: each finds it as if it were new."""

import pytest
import sqlalchemy as sa

import factories

pytestmark = pytest.mark.version_independent

CHANGES = [
    "CREATE TABLE notes (id int)",
    "ALTER TABLE mailglass_events ADD CHECK (type <> 'never')",
    "REVOKE SELECT ON pg_catalog.pg_database FROM PUBLIC",
    "CREATE RULE quiet AS ON INSERT TO mailglass_events DO INSTEAD NOTHING",
    "ALTER DATABASE {name} SET work_mem = '1MB'",
]


def run(engine: sa.Engine, sql: str) -> None:
    """Run a statement in a transaction that is committed."""
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(sql)


@pytest.mark.parametrize("sql", CHANGES)
def test_a_database_in_which_more_than_rows_has_changed_is_replaced(database_pool, sql):
    """The next test gets another copy of the template."""
    with database_pool.acquire() as pooled:
        before = pooled.url
        run(pooled.engine, sql.format(name=pooled.engine.url.database))
    with database_pool.acquire() as pooled:
        assert pooled.url != before
        assert pooled.is_unchanged()


@pytest.mark.parametrize("orphans", [1, 100], ids=["few", "many"])
def test_rows_are_gone_and_the_database_is_the_same(database_pool, orphans):
    """The ledger, which refuses a DELETE, is emptied too; its pages and statistics are reset."""
    count = "SELECT pg_relation_size('mailglass_events') + pg_relation_size('witness.events')"
    analyzed = "SELECT count(*) FROM pg_statistic WHERE starelid >= 16384"
    with database_pool.acquire() as pooled:
        before = pooled.url
        factories.insert(pooled, events=[factories.orphan_row(factories.postmark(number)) for number in range(orphans)])
        run(pooled.engine, "ANALYZE mailglass_events" if orphans > 1 else "SELECT 1")
    with database_pool.acquire() as pooled, pooled.engine.connect() as connection:
        assert pooled.url == before
        assert connection.exec_driver_sql(count).scalar_one() == 0
        assert connection.exec_driver_sql(analyzed).scalar_one() == 0


def test_a_session_is_kept_and_has_nothing_of_the_last_test(database_pool):
    """Its settings, role, temporary tables and advisory locks end with the test."""
    state = (
        "SELECT pg_backend_pid(), current_user = session_user, current_setting('work_mem') = '1MB', to_regclass('t'),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
    )
    with database_pool.acquire() as pooled:
        run(
            pooled.engine,
            "CREATE TEMP TABLE t (); SET work_mem = '1MB'; SELECT pg_advisory_lock(1); SET ROLE pg_monitor",
        )
        with pooled.engine.connect() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with database_pool.acquire() as pooled, pooled.engine.connect() as connection:
        assert connection.exec_driver_sql(state).one() == (pid, True, False, None, 0)


def test_a_database_that_somebody_still_uses_is_replaced(database_pool):
    """A test that leaves a lock behind does not make the next one wait."""
    with database_pool.acquire() as pooled:
        before = pooled.url
        factories.delivery(pooled)
        holder = pooled.engine.connect()
        holder.exec_driver_sql("LOCK mailglass_deliveries")
    with database_pool.acquire() as pooled:
        assert pooled.url != before
    holder.invalidate()
    holder.close()


def test_what_a_rolled_back_test_has_done_is_gone(database_pool):
    """Its rows, tables and settings are rolled back, and the next test gets the same database."""
    with database_pool.transaction() as tx:
        factories.orphan(tx, factories.postmark("m"))
        tx.run("CREATE TABLE notes ()")
        tx.run("SET work_mem = '1MB'")
        before = tx.value("SELECT current_database()")
    state = (
        "SELECT current_database(), (SELECT count(*) FROM mailglass_open_orphans), current_setting('work_mem') = '1MB'"
    )
    with database_pool.acquire() as pooled, pooled.engine.connect() as connection:
        assert connection.exec_driver_sql(state).one() == (before, 0, False)
        assert pooled.is_unchanged()


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_a_test_that_ends_its_transaction_fails_and_leaves_nothing_to_the_next_one(database_pool, end):
    """The error names the fixture `db`, whose database is emptied after the test."""

    def test():
        with database_pool.transaction() as tx:
            factories.orphan(tx, factories.postmark("m"))
            tx.run(end)

    with pytest.raises(AssertionError, match="needs the fixture `db`"):
        test()
    with database_pool.transaction() as tx:
        assert tx.value("SELECT count(*) FROM mailglass_events") == 0
