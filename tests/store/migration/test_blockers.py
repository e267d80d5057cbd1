"""A migration that waits says for whom."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from catalog import installation, live, url_of
from history import new_id
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.store.migration.session import open_session
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

ALTER = "ALTER TABLE {schema}.mailglass_deliveries ADD COLUMN region text"
BUILD = "CREATE INDEX CONCURRENTLY region_idx ON {schema}.mailglass_deliveries (tenant_id)"


@contextmanager
def holding(database, sql, **options):
    """Hold a transaction of an application named "a report" that has run a statement; yield its process."""
    with psycopg.connect(url_of(database), application_name="a report") as holder:
        for name, value in options.items():
            setattr(holder, name, value)
        holder.execute(sql)
        yield holder.info.backend_pid


def test_the_transaction_that_keeps_a_step_from_its_lock_is_named(empty_database_url):
    """Whoever runs the migration can end that session; the last line names it, too."""
    database, lines = live(empty_database_url), []
    opened = open_session(database.engine, database.settings, lines.append, retry_seconds=PATIENCE, report_seconds=0)
    with ThreadPoolExecutor() as pool, opened as session:
        with holding(database, "SELECT count(*) FROM mailglass_deliveries") as pid:
            running = pool.submit(session.run, "add a column", ALTER)
            wait_until(lambda: lines or running.done())
            session.retry_seconds = 0
            with pytest.raises(
                DatabaseRefusedError, match=rf"^could not add a column: process {pid} of role .* held a"
            ):
                running.result(PATIENCE)
        session.run("add a column", ALTER)
    [line] = lines
    assert line.startswith(f"warning: still waiting to add a column, for process {pid} of role 'postgres', application")
    assert "'a report', idle in transaction, its transaction open for " in line
    assert line.endswith(f"(SELECT pg_terminate_backend({pid}) ends it)")


def test_the_snapshot_that_an_index_s_build_waits_for_is_named(empty_database_url):
    """It waits without end, for sessions that never touched the table; a plain owner does not see their state."""
    admin, lines, role = live(empty_database_url), [], f"owner_{new_id().replace('-', '')[:12]}"
    admin.run(f"CREATE ROLE {role} LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO {role}")
    admin.run(f"ALTER TABLE mailglass_deliveries OWNER TO {role}")
    owned = installation(admin.engine.url.set(username=role).render_as_string(hide_password=False))
    try:
        opened = open_session(owned.engine, owned.settings, lines.append, report_seconds=0)
        snapshot = holding(admin, "SELECT 1", isolation_level=psycopg.IsolationLevel.REPEATABLE_READ)
        with ThreadPoolExecutor() as pool, opened as session:
            with snapshot as pid:
                running = pool.submit(session.run_alone, "build the index", BUILD)
                wait_until(lambda: lines or running.done())
                assert not running.done()
            running.result(PATIENCE)
        who = f"process {pid} of role 'postgres', application 'a report'"
        assert lines == [
            f"warning: still waiting to build the index, for {who} (SELECT pg_terminate_backend({pid}) ends it)"
        ]
    finally:
        admin.run(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_the_migration_that_another_one_waits_for_is_named(empty_database_url):
    database, lines = live(empty_database_url), []
    with ThreadPoolExecutor() as pool:
        with holding(database, "SELECT pg_advisory_lock(hashtext('mailglass_reconcile migrate'))") as pid:
            opened = open_session(database.engine, database.settings, lines.append, report_seconds=0)
            running = pool.submit(opened.__enter__)
            wait_until(lambda: lines or running.done())
        running.result(PATIENCE)
        opened.__exit__(None, None, None)
    [line] = lines
    assert line.startswith(f"warning: still waiting: process {pid} of role 'postgres', application 'a report', holds")
