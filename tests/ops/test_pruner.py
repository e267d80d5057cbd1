"""The prune: raw webhooks by status and age, in batches, and a repair of the open set."""

from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

import mailglass_reconcile
import meter
import raw_webhooks
from catalog import live
from factories import delivery, new_id, orphan, postmark
from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.mailglass_compat.raw_webhooks import DELETE_OLD
from mailglass_reconcile.ops import pruner
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database, engines
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.tables import repair

NOTHING_PRUNED = {
    **dict.fromkeys(
        (
            "succeeded",
            "dead",
            "failed",
            "expired",
            "settled",
            "added",
            "jobs_done",
            "jobs_dead",
            "events",
            "deliveries",
        ),
        0,
    ),
    "failures": {},
    "status": "ok",
}


def webhooks(db, status: str, days: int, minutes: int = 1, number: int = 1) -> None:
    """Insert raw webhooks of an age: some days and a minute."""
    raw_webhooks.insert(db, status=status, ago=days * 86_400 + minutes * 60, number=number)


def count_webhooks(db) -> Counter[str]:
    """Count the raw webhooks by status."""
    return Counter(row[0] for row in db.rows("SELECT status FROM mailglass_webhook_events"))


def test_nothing_to_prune_is_fine(db):
    """All counts are zero."""
    assert mailglass_reconcile.prune().as_dict() == NOTHING_PRUNED


def test_webhooks_go_by_status_and_age(db):
    """Succeeded ones go after 14 days, dead ones after 90; failed, received and processing ones never."""
    for status in ("succeeded", "dead", "failed", "received", "processing"):
        for days in (13, 14, 89, 90, 400):
            webhooks(db, status, days)
            webhooks(db, status, days, minutes=-1)
    result = mailglass_reconcile.prune()
    assert result.as_dict() == {**NOTHING_PRUNED, "succeeded": 7, "dead": 3}
    assert count_webhooks(db) == {"succeeded": 3, "dead": 7, "failed": 10, "received": 10, "processing": 10}
    assert mailglass_reconcile.prune().as_dict() == NOTHING_PRUNED


def test_a_retention_of_infinity_sends_no_delete(db):
    """No DELETE is sent, not even one that finds nothing."""
    webhooks(db, "succeeded", 4_000)
    never = {f"retention_{status}_days": "infinity" for status in ("succeeded", "dead", "failed")}
    settings = Settings(**{**db.settings.model_dump(), **never})
    with meter.statements(db.engine) as statements:
        pruner.prune_with(database.Database(db.engine, settings))
    assert not [sql for sql in statements if "DELETE FROM" in sql and "mailglass_webhook_events" in sql]
    assert count_webhooks(db) == {"succeeded": 1}
    with meter.statements(db.engine) as statements:
        pruner.prune_with(db.database)
    assert len([sql for sql in statements if 'DELETE FROM "public".mailglass_webhook_events' in sql]) == 2


def test_a_retention_of_zero_days_deletes_what_is_there(db):
    for status in ("succeeded", "dead", "failed"):
        webhooks(db, status, 0)
    settings = db.settings.model_copy(update={"retention_failed_days": 0})
    assert pruner.prune_with(database.Database(db.engine, settings)).as_dict() == {**NOTHING_PRUNED, "failed": 1}


def test_deletes_come_in_batches_each_committed(db):
    """No transaction deletes more than one batch."""
    webhooks(db, "succeeded", 20, number=2 * Limits.batch_rows + 1)
    db.run("CREATE TABLE witness.deleted (transaction bigint, rows bigint)")
    db.run("""CREATE FUNCTION witness.deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO witness.deleted SELECT txid_current(), count(*) FROM gone; RETURN NULL; END $$""")
    db.run("""CREATE TRIGGER witness_deleted AFTER DELETE ON mailglass_webhook_events REFERENCING OLD TABLE AS gone
              FOR EACH STATEMENT EXECUTE FUNCTION witness.deleted()""")
    assert mailglass_reconcile.prune().succeeded == 2 * Limits.batch_rows + 1
    batches = db.rows("SELECT sum(rows) FROM witness.deleted GROUP BY transaction ORDER BY 1 DESC")
    assert [int(row[0]) for row in batches if row[0]] == [Limits.batch_rows, Limits.batch_rows, 1]


def test_webhooks_that_somebody_else_holds_are_left_to_the_next_prune(db):
    """Neither waits for the other."""
    webhooks(db, "succeeded", 20, number=2)
    with db.engine.connect() as locker:
        locker.exec_driver_sql("SELECT FROM mailglass_webhook_events LIMIT 1 FOR UPDATE")
        assert mailglass_reconcile.prune().succeeded == 1
    assert mailglass_reconcile.prune().succeeded == 1


@pytest.mark.slow
def test_the_delete_finds_its_rows_through_our_index(db):
    """A batch of the oldest is found without a sort or a scan among many that stay."""
    webhooks(db, "succeeded", 1, number=20_000)
    webhooks(db, "received", 30, number=20_000)
    webhooks(db, "succeeded", 20, number=3)
    db.run("ANALYZE mailglass_webhook_events")
    plan = db.rows(
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + database.in_schema(DELETE_OLD, "public"),
        status="succeeded",
        days=14,
        size=5_000,
    )
    text = "\n".join(row[0] for row in plan)
    assert "mailglass_webhook_events_prune_idx" in text
    assert "Seq Scan" not in text
    assert "Sort" not in text


def test_expired_orphans_leave_the_open_set_and_do_not_come_back(db):
    """They stay in the ledger."""
    young = orphan(db, postmark("m-1"), age_seconds=7 * 86_400 - 60)
    old = orphan(db, postmark("m-2"), age_seconds=7 * 86_400 + 60)
    assert mailglass_reconcile.prune().as_dict() == {**NOTHING_PRUNED, "expired": 1}
    assert db.rows("SELECT event_id::text FROM mailglass_open_orphans") == [(young,)]
    assert {row[0] for row in db.rows("SELECT id::text FROM mailglass_events")} == {young, old}


def test_an_expired_orphan_that_no_sweep_has_checked_counts_as_one_with_a_delivery_if_it_has_one(db):
    delivery(db, "m-1", tenant_id="other")
    for id_ in ("m-1", "m-2"):
        orphan(db, postmark(id_), age_seconds=8 * 86_400)
    with meter.statements(db.engine) as statements:
        assert mailglass_reconcile.prune().as_dict() == {**NOTHING_PRUNED, "expired": 2}
    assert not [sql for sql in statements if "INSERT INTO" in sql and "mailglass_open_orphan_ids" in sql]
    assert db.rows("SELECT expired, unmatched FROM mailglass_reconcile_runs") == [(2, 1)]
    assert db.value("SELECT count(*) FROM mailglass_open_orphan_ids") == 0


def test_the_open_set_is_mended_by_the_ledger(db):
    missing, settled = orphan(db, postmark("m-1")), orphan(db, postmark("m-2"))
    db.run("DELETE FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)", id=missing)
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(
            sa.text("""INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key)
                       VALUES (gen_random_uuid(), 'acme', 'reconciled', now(), 'reconciled:' || :id)"""),
            {"id": settled},
        )
    db.run("INSERT INTO mailglass_open_orphans VALUES (CAST(:id AS uuid), 'acme', now())", id=new_id())
    db.broken.update({"I1", "I2", "I3", "I5"})
    assert mailglass_reconcile.prune().as_dict() == {**NOTHING_PRUNED, "settled": 2, "added": 1}
    assert db.rows("SELECT event_id::text FROM mailglass_open_orphans") == [(missing,)]


def test_a_repair_ends_although_writers_write_on(db, set_limits):
    """What a writer as fast as the repair adds after its start is left to the trigger."""
    set_limits(batch_rows=1)
    missing = orphan(db, postmark("m"), age_seconds=100)
    db.run("DELETE FROM mailglass_open_orphans")
    writers = engines.create_engine(db.settings)
    later = []

    def write(connection: sa.Connection) -> None:
        if len(later) < 50:
            later.append(orphan(replace(db, engine=writers), postmark(f"m-{len(later)}"), age_seconds=0))

    sa.event.listen(db.engine, "commit", write)
    with db.database.connect() as connected:
        assert repair.add_missing(connected) == 1
    sa.event.remove(db.engine, "commit", write)
    assert len(later) < 5
    assert {row[0] for row in db.rows("SELECT event_id::text FROM mailglass_open_orphans")} == {missing, *later}


@pytest.mark.parametrize("state", ["empty", "unmigrated"])
def test_a_database_that_is_not_migrated_is_not_pruned(empty_database_url, state):
    """The error names the command to run, and nothing is deleted."""
    if state == "unmigrated":
        live(empty_database_url)
    settings = Settings(database_url=empty_database_url)
    engine = mailglass_reconcile.store.engines.create_engine(settings)
    outdated = pytest.raises(SchemaOutdatedError, match="run `mailglass-reconcile migrate`")
    with meter.statements(engine) as statements, outdated:
        pruner.prune_with(database.Database(engine, settings))
    assert not [sql for sql in statements if "DELETE" in sql]


def test_raw_webhooks_of_mailglass_s_tables_are_kept_unless_a_retention_is_set(mailglass_db):
    """Mailglass prunes them itself; a retention of each status, in the environment or in Python, counts alone."""
    mailglass_db.run("CREATE TABLE IF NOT EXISTS mailglass_suppressions (id uuid PRIMARY KEY)")
    for status in ("succeeded", "dead", "failed"):
        webhooks(mailglass_db, status, days=400)
    assert mailglass_reconcile.prune().as_dict() == NOTHING_PRUNED
    settings = mailglass_db.settings.model_copy(update={"retention_dead_days": 90})
    mailglass_reconcile.configure(engine=mailglass_db.engine, settings=settings)
    assert mailglass_reconcile.prune().dead == 1
    assert count_webhooks(mailglass_db) == {"succeeded": 1, "failed": 1}
