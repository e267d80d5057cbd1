"""A sweep after its connection was lost: how often it tries again, and in which isolation level."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

import mailglass_reconcile
from database import Database
from factories import insert_pairs
from faults import proxy
from faults.proxy import COMMIT, FaultyProxy
from mailglass_reconcile.store import engines

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.version_independent]

ORPHANS = 5


@pytest.fixture
def through(db: Database) -> Iterator[FaultyProxy]:
    """A proxy before the test's database, and the package configured to use it."""
    with proxy.postgres_proxy(db.url) as (faulty_proxy, url):
        settings = db.settings.model_copy(update={"batch_size": 2, "database_url": type(db.settings.redis_url)(url)})
        mailglass_reconcile.configure(engine=engines.create_engine(settings), settings=settings)
        yield faulty_proxy


def test_a_commit_that_is_lost_again_and_again_ends_the_sweep_and_says_so(db: Database, through: FaultyProxy) -> None:
    insert_pairs(db, ORPHANS)
    through.arm(COMMIT, "before", 2, times=1_000)
    result = mailglass_reconcile.reconcile()
    assert (result.status, result.linked, result.skipped) == ("failed", 0, ORPHANS)
    through.arm(COMMIT, "before", 0)
    assert mailglass_reconcile.reconcile().linked == ORPHANS


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
    assert mailglass_reconcile.reconcile().linked == ORPHANS
    assert [row.level for row in db.rows("SELECT DISTINCT level FROM isolation")] == ["read committed"]
