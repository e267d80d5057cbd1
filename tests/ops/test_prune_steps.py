"""What a prune costs, and that its steps stand by themselves."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import mailglass_reconcile
from factories import orphan, postmark
from mailglass_reconcile.store import repair

SETTLED = """
WITH orphans AS (
  INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at)
  SELECT gen_random_uuid(), 'tenant ' || n % 3, 'delivered', now(), true,
         now()::timestamp - interval '30 days' - make_interval(secs => n)
    FROM generate_series(1, :number) AS n RETURNING id, tenant_id
)
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, inserted_at)
SELECT gen_random_uuid(), tenant_id, 'reconciled', now(), 'reconciled:' || id, now()::timestamp - interval '30 days'
  FROM orphans
"""


def settle(db, number: int) -> None:
    """Insert orphans that were reconciled thirty days ago, without the triggers' work."""
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(sa.text(SETTLED), {"number": number})
    db.run("ANALYZE mailglass_events")
    db.broken.update({"I1", "I2", "I3", "I5"})


def buffers(db, act) -> int:
    """Return how many pages the statements of a connection read, from memory or not."""
    total = 0
    with db.database.connect() as connected:

        def explain(connection, cursor, statement, parameters, context, many):
            nonlocal total
            if "mailglass_events" in statement:
                cursor.execute("EXPLAIN (ANALYZE, BUFFERS) " + statement, parameters)
                plan = "\n".join(row[0] for row in cursor.fetchall())
                found = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", plan)
                total += sum(int(number or 0) for number in found.groups())
            return statement, parameters

        sa.event.listen(connected.connection, "before_cursor_execute", explain, retval=True)
        act(connected, 5_000)
    return total


@pytest.mark.parametrize("act", [repair.add_missing, repair.remove_settled])
def test_a_repair_reads_nothing_that_settled_before_the_maximum_age(db, act):
    """Twenty times as many settled orphans cost the same."""
    settle(db, 500)
    few = buffers(db, act)
    settle(db, 10_000)
    assert buffers(db, act) <= few + 30


def test_an_uncommitted_link_is_not_reported_as_added(db):
    """The prune waits for it, and sees that the orphan is linked."""
    event_id = orphan(db, postmark("m-1"))
    db.broken.update({"I1", "I2", "I3", "I5"})
    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL mailglass_reconcile.removes_itself = 'on'")
            connection.exec_driver_sql("DELETE FROM mailglass_open_orphans")
            connection.execute(
                sa.text("""INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key)
                           VALUES (gen_random_uuid(), 'acme', 'reconciled', now(), 'reconciled:' || :id)"""),
                {"id": event_id},
            )
            pruned = pool.submit(mailglass_reconcile.prune)
            waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
            while not pruned.done() and not db.value(waiting):
                pass
        assert pruned.result().added == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
