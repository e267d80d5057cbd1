"""Connections that are lost around COMMIT, or at any other message: one link, published once, and true counts."""

from collections.abc import Callable, Iterator
from itertools import count

import pytest
import sqlalchemy as sa

import mailglass_reconcile
from database import Database
from factories import insert_pairs
from faults import proxy
from faults.proxy import Fault, FaultyProxy
from faults.racing import COMMIT, ORPHANS
from faults.runs import FULL
from mailglass_reconcile.store import engines
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]

Record = Callable[[str, object], None]


@pytest.fixture
def through(db: Database) -> Iterator[FaultyProxy]:
    """A proxy before the test's database, and the package configured to use it."""
    with proxy.postgres_proxy(db.url) as (faulty_proxy, url):
        settings = db.settings.model_copy(update={"batch_size": 2, "database_url": type(db.settings.redis_url)(url)})
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        yield faulty_proxy


def sweep(db: Database, fault: Fault = "before") -> SweepResult:
    """Sweep with the fault, and check the counts against the database.

    If the answer to a COMMIT was lost (*fault* is "after"), its links are there and count as held.
    """
    before = db.count_links()
    try:
        result = mailglass_reconcile.reconcile()
    except mailglass_reconcile.MailglassReconcileError:
        assert db.count_links() == before, "nothing may be swept where the sweep raises"
        return SweepResult(status="raised")
    unanswered = db.count_links() - before - result.linked
    assert unanswered == 0 or (fault == "after" and 0 < unanswered <= result.skipped_held)
    assert result.published == 2 * result.linked
    assert result.status in ("ok", "failed")
    if result.status == "ok":
        assert result.linked + unanswered == result.scanned
    return result


@pytest.mark.guard
@pytest.mark.parametrize("fault", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_a_connection_lost_at_a_commit_loses_no_link(
    db: Database, through: FaultyProxy, fault: Fault, record_property: Record
) -> None:
    """For each N, the N-th COMMIT is lost: its batch is retried, and nothing is linked or published twice."""
    statuses = []
    for number in count(1):
        insert_pairs(db, ORPHANS)
        through.arm(COMMIT, fault, number)
        statuses.append(sweep(db, fault).status)
        if not through.dropped:
            break
        through.arm(COMMIT, fault, 0)
        assert sweep(db).status == "ok"
    assert len(statuses) >= 6
    assert set(statuses) == {"ok"}
    record_property("fault", (f"connection lost {fault} COMMIT", number - 1))


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_connection_lost_at_any_message_loses_no_link(
    db: Database, through: FaultyProxy, fault: Fault, record_property: Record
) -> None:
    """For each N (each seventh in the selection), the sweep's N-th message is lost."""
    result = 0
    for number in count(1, 1 if FULL else 7):
        insert_pairs(db, ORPHANS)
        through.arm(b"", fault, number)
        sweep(db, fault)
        if not through.dropped:
            break
        through.arm(b"", fault, 0)
        assert sweep(db).status == "ok"
        result += 1
    assert result >= 5
    record_property("fault", (f"connection lost {fault} a message", result))


def test_a_commit_that_is_lost_again_and_again_ends_the_sweep_and_says_so(db: Database, through: FaultyProxy) -> None:
    """Attempts are bounded; the next sweep goes on."""
    insert_pairs(db, ORPHANS)
    through.arm(COMMIT, "before", 2, times=1_000)
    result = mailglass_reconcile.reconcile()
    assert (result.status, result.linked, result.skipped) == ("failed", 0, ORPHANS)
    through.arm(COMMIT, "before", 0)
    assert sweep(db).linked == ORPHANS


def test_a_transaction_after_a_lost_connection_is_read_committed_like_those_before_it(
    db: Database, through: FaultyProxy
) -> None:
    """A new connection must not fall back to the server's default."""
    with db.engine.begin() as connection:
        name = connection.dialect.identifier_preparer.quote(sa.make_url(db.url).database or "")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        connection.execution_options(no_parameters=True).exec_driver_sql("""
            CREATE TABLE isolation (level text);
            CREATE FUNCTION note_isolation() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              INSERT INTO public.isolation VALUES (current_setting('transaction_isolation')); RETURN NULL;
            END $$;
            CREATE TRIGGER isolation AFTER INSERT ON mailglass_events FOR EACH ROW
              WHEN (NEW.type = 'reconciled') EXECUTE FUNCTION note_isolation();
        """)
    insert_pairs(db, ORPHANS)
    through.arm(COMMIT, "before", 2)
    assert sweep(db).linked == ORPHANS
    assert [row.level for row in db.rows("SELECT DISTINCT level FROM isolation")] == ["read committed"]
