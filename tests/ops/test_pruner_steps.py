"""The cost of a prune, and the independence of its steps."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import sqlalchemy as sa

import mailglass_reconcile
import meter
import raw_webhooks
from factories import orphan, postmark
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.ops.checks import ledger
from mailglass_reconcile.ops.pruner import prune_with
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.tables import repair
from marking import slow_unless
from roles import temporary_role
from waiting import wait_until

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


def settle(db, number: int, *, analyze: bool = True) -> None:
    """Insert orphans that were reconciled thirty days ago, without firing triggers."""
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(sa.text(SETTLED), {"number": number})
    if analyze:
        db.run("ANALYZE mailglass_events")
    db.broken.update({"I1", "I2", "I3", "I5"})


def buffers(db, act, table="mailglass_events") -> int:
    """Return how many buffers the statements of a connection about a table read."""
    with db.database.connect() as connected, meter.plans(connected.connection, table) as plan:
        act(connected)
    return plan.buffers


@pytest.mark.parametrize("act", [repair.add_missing, repair.remove_closed])
def test_a_repair_reads_nothing_that_settled_before_the_maximum_age(db, act):
    """Twenty times as many closed orphans cost the same."""
    settle(db, 200)
    few = buffers(db, act)
    settle(db, 4_000)
    assert buffers(db, act) <= few + 30


def test_an_uncommitted_link_is_not_reported_as_added(db):
    event_id = orphan(db, postmark("m-1"))
    db.broken.update({"I1", "I2", "I3", "I5"})
    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL mailglass_reconcile.closes_orphans = 'on'")
            connection.exec_driver_sql("DELETE FROM mailglass_open_orphans")
            connection.execute(
                sa.text("""INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key)
                           VALUES (gen_random_uuid(), 'acme', 'reconciled', now(), 'reconciled:' || :id)"""),
                {"id": event_id},
            )
            pruned = pool.submit(mailglass_reconcile.prune)
            wait_until(lambda: pruned.done() or db.find_waiting())
        assert pruned.result().added == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


STEPS = {
    "succeeded": "mailglass_webhook_events",
    "jobs_done": "mailglass_handler_outbox",
    "expired": "mailglass_open_orphans",
    "ids": "mailglass_open_orphan_ids",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_is_reported_and_the_others_run(db, caplog, step):
    """One line names it, the history has a `partial` row, and the next prune does the rest."""
    fill(db, 1)
    db.run("""CREATE FUNCTION witness.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE SQLSTATE 'P0001' USING MESSAGE = 'ada@example.com'; END $$""")
    db.run(f"CREATE TRIGGER refuse BEFORE DELETE ON {STEPS[step]} FOR EACH ROW EXECUTE FUNCTION witness.refuse()")
    result = mailglass_reconcile.prune()
    assert list(result.failures) == ([step, "settled"] if step == "expired" else [step])
    assert result.failures[step] == "the database refused a statement (SQLSTATE P0001)"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"prune: {'steps' if step == 'expired' else 'step'} {', '.join(result.failures)} failed, and the others ran:"
        f" {result.failures[step]}"
    ]
    assert count_pending(db) == {name: int(name in {*result.failures}) for name in PENDING}
    rows = db.rows("SELECT status, error FROM mailglass_reconcile_runs WHERE kind = 'prune'")
    assert [tuple(row) for row in rows] == [("partial", "DatabaseRefusedError")]
    db.run(f"DROP TRIGGER refuse ON {STEPS[step]}")
    assert mailglass_reconcile.prune().failures == {}
    assert count_pending(db) == dict.fromkeys(PENDING, 0)


PENDING = {
    "succeeded": "SELECT count(*) FROM mailglass_webhook_events",
    "jobs_done": "SELECT count(*) FROM mailglass_handler_outbox",
    "expired": "SELECT count(*) FROM mailglass_open_orphans WHERE arrived_at < now()::timestamp - interval '8 days'",
    "settled": "SELECT count(*) FROM mailglass_open_orphans WHERE arrived_at > now()::timestamp - interval '8 days'",
    "ids": "SELECT count(*) FROM mailglass_open_orphan_ids",
}
"""How many rows each step has to remove."""


def count_pending(db) -> dict[str, int]:
    """Return how many rows each step would remove."""
    return {name: db.value(sql) for name, sql in PENDING.items()}


def fill(db, number: int) -> None:
    """Give each step as many rows to remove."""
    raw_webhooks.insert(db, ago=20 * 86_400, number=number)
    for sql in (
        """INSERT INTO mailglass_handler_outbox
                  (event_id, handler, delivery_id, type, state, next_at, inserted_at, finished_at)
           SELECT gen_random_uuid(), 'audit', gen_random_uuid(), 'opened', 'done', now(), now(),
                  now()::timestamp - interval '20 days' FROM generate_series(1, :number)""",
        """INSERT INTO mailglass_open_orphans
           SELECT gen_random_uuid(), 'acme', now()::timestamp - make_interval(days => days)
             FROM generate_series(1, :number), unnest(ARRAY[0, 9]) AS a (days)""",
        "INSERT INTO mailglass_open_orphan_ids SELECT gen_random_uuid(), 1, 'm-1' FROM generate_series(1, :number)",
    ):
        db.run(sql, number=number)
    db.broken.update({"I13", "I14"})


def test_a_right_that_a_step_lacks_is_named_with_its_grant(db, admin):
    """The line has the GRANT to run."""
    fill(db, 1)
    with temporary_role(admin, "", db) as role:
        db.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        db.run(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
        db.run(f"REVOKE DELETE ON mailglass_handler_outbox FROM {role}")
        settings = db.settings.model_copy(update={"retention_dead_days": None})
        acting = engines.create_engine(settings)
        sa.event.listen(acting, "connect", lambda raw, _: (raw.execute(f"SET ROLE {role}"), raw.commit()))
        result = prune_with(Database(acting, settings))
        assert result.failures == {
            "jobs_done": f"role {role} lacks a privilege (SQLSTATE 42501):"
            f" run GRANT DELETE ON public.mailglass_handler_outbox TO {role}"
        }
        assert (result.succeeded, result.expired, result.settled, result.status) == (1, 1, 1, "partial")


@pytest.mark.slow
def test_two_prunes_at_the_same_time_share_the_work(db, set_limits):
    """Neither fails, and each row is counted once."""
    set_limits(batch_rows=50)
    fill(db, 1_000)
    db.run("""INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, linked)
              SELECT now() - interval '40 days', now() - interval '40 days', 'full', 'beat', 'ok', 1
                FROM generate_series(1, 500)""")
    begin = Barrier(2)

    def prune(_: int) -> pruner.PruneResult:
        begin.wait()
        return prune_with(db.database)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(prune, range(2)))
    assert [result.failures for result in results] == [{}, {}]
    for name in ("succeeded", "jobs_done", "expired", "settled"):
        assert sum(getattr(result, name) for result in results) == 1_000
    assert count_pending(db) == dict.fromkeys(PENDING, 0)
    assert db.value("SELECT sum(linked) FROM mailglass_reconcile_runs") == 500


@pytest.mark.slow
@pytest.mark.parametrize("table", ["mailglass_open_orphans", "mailglass_open_orphan_ids"])
def test_a_batch_does_not_pass_again_what_earlier_ones_have_removed(db, set_limits, table):
    """While a snapshot keeps dead rows, twice as many batches read twice as many buffers, not four times."""
    set_limits(batch_rows=100)
    acts = {
        "mailglass_open_orphans": lambda connected: list(repair.remove_expired(connected)),
        "mailglass_open_orphan_ids": repair.remove_stray_ids,
    }
    read = []
    for number in (1_000, 2_000):
        fill(db, number)
        db.run(f"ANALYZE {table}")
        with db.engine.connect() as reader:
            reader.execution_options(isolation_level="REPEATABLE READ").exec_driver_sql(f"SELECT count(*) FROM {table}")  # noqa: S608
            read.append(buffers(db, acts[table], table))
        db.run(f"TRUNCATE {table}")
    assert read[1] < 2.6 * read[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    slow_unless(
        (repair._ADD_MISSING, repair._REMOVE_SETTLED).__contains__,
        [repair._ADD_MISSING, repair._REMOVE_SETTLED, repair._REMOVE_STRAY_IDS, ledger._MISSING, ledger._SETTLED],
    ),
    ids=["add missing", "remove settled", "remove stray ids", "doctor: missing", "doctor: settled"],
)
def test_each_orphan_is_probed_for_by_key_although_statistics_are_stale(db, statement):
    """No plan hashes the `reconciled` events."""
    for table in ("mailglass_events", "mailglass_open_orphans", "mailglass_open_orphan_ids"):
        db.run(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        db.run(f"ANALYZE {table}")
    settle(db, 3_000, analyze=False)
    fill(db, 500)
    place = {"after_tenant": "", "after_time": "-infinity", "after_id": str(uuid.UUID(int=0)), "after_position": -1}
    bounds = {"size": 5_000, "max_age_minutes": 10_080, "max_tenant_length": 1_000, "until_time": "infinity"}
    with db.database.connect() as connected, connected.writing() as tx:
        parameters = {**place, **bounds, "minutes": 8_640, "percent": 100.0}
        plan = "\n".join(tx.execute("EXPLAIN " + statement, parameters).scalars())
    assert "hashed SubPlan" not in plan
