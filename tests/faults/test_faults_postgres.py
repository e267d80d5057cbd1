"""Faults of Postgres during a sweep: links are whole or absent, nothing is lost, and the result says so."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

import factories
import mailglass_reconcile
import sweeping
from database import APPENDED, Database
from faults import servers
from faults.refusing import forgiving, refusing
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database as databases
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult
from marking import nightly_unless, slow_unless
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.version_independent, pytest.mark.timeout(1_500)]

STATES = ("40001", "40P01", "55P03", "57014", "53100", "53300", "57P01", "25006")
IN_CI = ("55P03", "22P02", "53100")
PASSING = {"40001", "40P01", "53100", "53300", "57P01", "25006"}


def sweep(db: Database, batch_size: int = 4, **settings: object) -> SweepResult:
    """Sweep in small batches, and check the counts against the database."""
    before = db.count_links()
    configured = db.settings.model_copy(update={"batch_size": batch_size, **settings})
    mailglass_reconcile.configure(engine=db.engine, settings=configured)
    result = mailglass_reconcile.reconcile()
    assert result.linked == db.count_links() - before
    assert result.published == 2 * result.linked
    return result


@pytest.mark.parametrize("state", nightly_unless(IN_CI.__contains__, STATES))
@pytest.mark.parametrize("times", nightly_unless((1).__eq__, [1, 2, 3]))
def test_a_commit_refused_a_few_times_is_retried_or_halved(db: Database, state: str, times: int) -> None:
    """A sequence counts the refusals, because a rollback does not reset it."""
    factories.insert_pairs(db, 10)
    refusing(db, state, f"nextval('public.refusals') <= {times}")
    result = sweep(db)
    if state == "55P03":
        assert result.linked + result.skipped == 10
        assert result.linked >= 10 - times
    else:
        assert (result.linked, result.status) == (10, "ok") if state in PASSING else result.linked >= 9
    forgiving(db)
    assert sweep(db).status == "ok"
    assert db.count_links() == 10


@pytest.mark.guard
@pytest.mark.parametrize(
    "state",
    nightly_unless(IN_CI.__contains__, [*STATES, "22P02", "23514", "XX000"], is_quick="55P03".__eq__),
)
def test_a_commit_refused_for_ever_for_one_row_costs_that_row_or_ends_the_sweep_and_says_so(
    db: Database, state: str
) -> None:
    """A fault of one row leaves its orphan open; a condition of the server fails the sweep."""
    factories.insert_pairs(db, 10)
    culprit = db.value(
        "SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at, event_id OFFSET 5 LIMIT 1"
    )
    refusing(db, state, f"NEW.idempotency_key = 'reconciled:{culprit}'")
    result = sweep(db)
    expected = {"55P03": (9, 0, 1, "ok"), "57014": (9, 1, 0, "partial")}
    if state in {"53100", "53300", "57P01", "25006"}:
        assert (result.status, result.failed) == ("failed", 0)
        assert result.linked + result.skipped == 10
    else:
        counted = (result.linked, result.failed, result.skipped, result.status)
        assert counted == expected.get(state, (9, 1, 0, "partial"))
        assert result.remaining == 1
    forgiving(db)
    assert sweep(db).status == "ok"
    assert db.count_links() == 10


@pytest.mark.guard
def test_halves_that_were_committed_before_an_outage_are_counted_and_published(db: Database) -> None:
    """A batch is refused for its data, its first half is linked, and its second half meets a full disk."""
    factories.insert_pairs(db, 8)
    last = db.value("SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at, event_id LIMIT 1")
    refusing(db, "53100", f"NEW.idempotency_key = 'reconciled:{last}'")
    with db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(f"""
            CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF NEW.idempotency_key = 'reconciled:{last}' THEN
                RAISE EXCEPTION USING ERRCODE = CASE nextval('public.refusals') WHEN 1 THEN '22P02' ELSE '53100' END;
              END IF;
              RETURN NULL;
            END $$""")
    result = sweep(db, batch_size=8)
    assert (result.status, result.linked, result.skipped, result.failed) == ("failed", 4, 4, 0)
    forgiving(db)
    assert sweep(db).linked == 4


@pytest.mark.parametrize("rounds", nightly_unless((6).__eq__, [6, 40]))
def test_a_backend_terminated_during_a_sweep_loses_no_link(db: Database, rounds: int) -> None:
    for number in range(rounds):
        factories.insert_pairs(db, 12)
        over = threading.Event()
        killer = threading.Thread(target=_terminate, args=(db, over, 1 + number % 3))
        killer.start()
        before = db.count_links()
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"batch_size": 1}))
        try:
            result = mailglass_reconcile.reconcile()
            assert result.linked == db.count_links() - before
            assert result.status == "failed" or result.linked == 12
        except mailglass_reconcile.MailglassReconcileError:
            assert db.count_links() == before
        finally:
            over.set()
            killer.join()
        sweep(db)
        assert db.count_links() == 12 * (number + 1)


@pytest.mark.parametrize("times", nightly_unless((1).__eq__, [1, 2, 3]))
def test_a_backend_terminated_inside_its_commit_is_retried(db: Database, times: int) -> None:
    """A deferred trigger terminates its own session, so that COMMIT gets no response."""
    factories.insert_pairs(db, 10)
    refusing(db, "57P01", "true")
    with db.engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(f"""
            CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF nextval('public.refusals') <= {times} THEN
                PERFORM pg_terminate_backend(pg_backend_pid());
                PERFORM pg_sleep(60);
              END IF;
              RETURN NULL;
            END $$""")
    result = sweep(db)
    assert (result.status, result.linked, db.value("SELECT last_value FROM refusals")) == ("ok", 10, 10 + times)
    forgiving(db)


def _terminate(db: Database, over: threading.Event, times: int) -> None:
    """Terminate other backends of the database that have appended, *times* times."""
    engine = sa.create_engine(db.engine.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        while times and not over.is_set():
            hit = connection.exec_driver_sql(
                "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                " AND query ~ 'reconciled_from_event_id' LIMIT 1) AS t"
            ).scalar_one()
            times -= bool(hit)
    engine.dispose()


@pytest.mark.guard
def test_a_delivery_locked_for_longer_than_the_sweep_is_left_and_the_rest_is_linked(db: Database) -> None:
    factories.insert_pairs(db, 6)
    with db.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE mailglass_deliveries SET status = 'x' WHERE id IN"
            " (SELECT id FROM mailglass_deliveries ORDER BY id LIMIT 2)"
        )
        with sweeping.refusals(db.engine) as refused:
            result = sweep(db)
        assert (result.linked, result.skipped, result.remaining) == (4, 2, 2)
        assert refused == []
    assert sweep(db).linked == 2


@pytest.mark.guard
@pytest.mark.parametrize("table", ["deliveries", "open_orphans"])
def test_locked_rows_are_skipped_without_waiting_or_rolling_back(db: Database, table: str) -> None:
    """Waiting would end in a lock timeout, and that in a rollback."""
    factories.insert_pairs(db, 20)
    rollbacks: list[sa.Connection] = []
    sa.event.listen(db.engine, "rollback", rollbacks.append)
    with db.engine.connect() as holder:
        holder.exec_driver_sql(f"SELECT FROM mailglass_{table} LIMIT 10 FOR UPDATE")
        result = sweep(db, batch_size=5)
        assert (result.status, result.linked, result.skipped) == ("ok", 10, 10)
        assert rollbacks == []
    assert sweep(db).linked == 10


@pytest.mark.guard
@pytest.mark.parametrize(
    "isolation",
    slow_unless("READ COMMITTED".__eq__, ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]),
)
@pytest.mark.parametrize("rounds", nightly_unless((3).__eq__, [3, 20]))
def test_a_writer_in_the_opposite_order_neither_blocks_a_sweep_nor_is_made_a_victim(
    db: Database, isolation: str, rounds: int
) -> None:
    """While sweeps run, it updates the same deliveries one by one, from the last to the first."""
    for _ in range(rounds):
        factories.insert_pairs(db, 30)
        failures: list[str | None] = []
        writer = threading.Thread(target=_write_backwards, args=(db, isolation, failures))
        writer.start()
        result = sweep(db, batch_size=30)
        writer.join()
        assert result.status == "ok"
        assert "40P01" not in failures
        if isolation == "READ COMMITTED":
            assert failures == []
        while sweep(db, batch_size=30).remaining:
            pass


def _write_backwards(db: Database, isolation: str, failures: list[str | None]) -> None:
    ids = [row.id for row in db.rows("SELECT id FROM mailglass_deliveries ORDER BY id DESC")]
    with db.engine.connect().execution_options(isolation_level=isolation) as connection:
        try:
            with connection.begin():
                for id_ in ids:
                    connection.execute(
                        sa.text("UPDATE mailglass_deliveries SET status = 'seen' WHERE id = :id"), {"id": id_}
                    )
        except sa.exc.DBAPIError as error:
            failures.append(getattr(error.orig, "sqlstate", None))


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_stricter_default_isolation_changes_nothing(db: Database, isolation: str) -> None:
    """Every transaction sets its own level."""
    db.set_default("default_transaction_isolation", isolation)
    factories.insert_pairs(db, 10)
    assert sweep(db).linked == 10


def test_a_fail_over_to_read_only_and_back_needs_no_restart(db: Database) -> None:
    factories.insert_pairs(db, 6)
    db.set_default("default_transaction_read_only", "on")
    result = sweep(db)
    assert (result.status, result.linked, result.skipped) == ("failed", 0, 6)
    db.set_default("default_transaction_read_only", None)
    result = sweep(db)
    assert (result.status, result.linked) == ("ok", 6)


def test_an_orphan_whose_transaction_stays_open_longer_than_the_grace_is_linked_when_it_commits(db: Database) -> None:
    """Rows are not committed in the order of insertion, and no sweep may skip it for ever."""
    text = uuid.uuid4().hex
    factories.delivery(db, text)
    with db.engine.begin() as connection:
        factories.insert(connection, events=[factories.orphan_row(factories.postmark(text), age_seconds=3600)])
        factories.insert_pairs(db, 3)
        assert sweep(db).linked == 3
        assert sweep(db).scanned == 0
    assert sweep(db).linked == 1


def test_no_connection_left_raises_by_name_and_the_next_sweep_links(db: Database) -> None:
    """A connection limit of a role simulates the server's, which superusers exceed."""
    factories.insert_pairs(db, 4)
    role = f"limited_{uuid.uuid4().hex[:8]}"
    db.run(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    db.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    db.run(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    try:
        engine = sa.create_engine(db.engine.url.set(username=role), poolclass=sa.NullPool)
        held_connection = engine.connect()
        mailglass_reconcile.configure(engine=engine, settings=db.settings)
        with pytest.raises(mailglass_reconcile.MailglassReconcileError, match="too many connections for role"):
            mailglass_reconcile.reconcile()
        held_connection.close()
        assert wait_until(lambda: _links_all(4)) is None
    finally:
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
        db.run(f"DROP OWNED BY {role}")
        db.run(f"DROP ROLE {role}")


def _links_all(expected: int) -> bool:
    try:
        return mailglass_reconcile.reconcile().linked == expected
    except mailglass_reconcile.MailglassReconcileError:
        return False


@pytest.fixture(scope="module")
def own_server() -> Iterator[servers.Postgres]:
    """A PostgreSQL that may be killed."""
    with servers.migrated_postgres() as server:
        yield server


@pytest.mark.parametrize("rounds", nightly_unless((2).__eq__, [2, 10]))
def test_a_server_restarted_immediately_during_a_sweep_loses_no_link(
    own_server: servers.Postgres, redis_url: str, rounds: int
) -> None:
    """The sweep waits for it or fails; the next one links the rest."""
    settings = Settings(database_url=SecretStr(own_server.url), redis_url=SecretStr(redis_url), batch_size=1)
    engine = engines.create_engine(settings)
    plain = servers.PlainDatabase(engine)
    for number in range(rounds):
        wait_until(lambda: _answers(engine))
        factories.insert_pairs(plain, 10)
        with _client(redis_url) as publisher:
            interrupted = Sweep(databases.Database(engine, settings), publisher)
            result = sweeping.run(interrupted, _restart_once(own_server, at=1 + number % 9))
        wait_until(lambda: _answers(engine))
        with _client(redis_url) as publisher:
            second = Sweep(databases.Database(engine, settings), publisher).run()
        assert result.status == "failed" or result.linked == 10
        assert result.linked + second.linked == 10
        assert plain.value(APPENDED) == 10 * (number + 1)


def _restart_once(server: servers.Postgres, at: int) -> Callable[[SweepResult], None]:
    calls = iter(range(1_000))

    def restart(result: SweepResult) -> None:
        if next(calls) == at:
            server.stop()
            server.start()

    return restart


def _answers(engine: sa.Engine) -> bool:
    try:
        with engine.connect() as connection:
            return connection.exec_driver_sql("SELECT true").scalar_one()
    except sa.exc.DBAPIError:
        return False


@contextmanager
def _client(redis_url: str) -> Iterator[Publisher]:
    import redis  # noqa: PLC0415 - one client per sweep, closed after it

    with redis.Redis.from_url(redis_url) as client:
        yield Publisher(client)


@pytest.mark.skipif(servers.pgbouncer_path() is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("rounds", nightly_unless((2).__eq__, [2, 10]))
def test_sweeps_through_pgbouncer_in_transaction_mode_link_and_leave_no_setting_behind(
    db: Database, rounds: int
) -> None:
    with servers.pgbouncer(db.url, 2) as url:
        settings = db.settings.model_copy(update={"database_url": SecretStr(url), "batch_size": 5})
        engine = engines.create_engine(settings)
        for _ in range(rounds):
            factories.insert_pairs(db, 100)
            mailglass_reconcile.configure(engine=engine, settings=settings)
            results: list[SweepResult] = []
            threads = [
                threading.Thread(target=lambda into=results: into.append(mailglass_reconcile.reconcile()))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [result.status for result in results] == ["ok"] * 4
            assert sum(result.linked for result in results) + mailglass_reconcile.reconcile().linked == 100
            with engine.connect() as connection:
                assert connection.exec_driver_sql("SHOW search_path").scalar_one() == '"$user", public'
                assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "0"
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
