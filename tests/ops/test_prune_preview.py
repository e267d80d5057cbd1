"""A dry run of the prune counts the rows of each step and shows the oldest, and writes nothing."""

import datetime as dt

import pytest

import commands
import factories
import mailglass_reconcile
import raw_webhooks
from backdating import days_ago
from mailglass_reconcile.ops import prune_preview, pruner
from mailglass_reconcile.store.database import Database

DAY = 86_400
JOB = """
INSERT INTO mailglass_handler_outbox (event_id, handler, delivery_id, type, state, next_at, inserted_at, finished_at)
VALUES (gen_random_uuid(), 'audit', gen_random_uuid(), 'opened', :state, now(), now(),
        now()::timestamp - make_interval(days => :days))
"""
ORPHANS = """
INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, needs_reconciliation, inserted_at)
SELECT gen_random_uuid(), 'tenant ' || n % 200, CASE WHEN NOT :is_orphan THEN gen_random_uuid() END, 'opened', now(),
       :is_orphan, now() - interval '1 hour'
  FROM generate_series(1, :number) AS n
"""
ROWS = """
SELECT (SELECT count(*) FROM mailglass_webhook_events) + (SELECT count(*) FROM mailglass_handler_outbox)
       + (SELECT count(*) FROM mailglass_open_orphans) + (SELECT count(*) FROM mailglass_events)
       + (SELECT count(*) FROM mailglass_deliveries) + (SELECT count(*) FROM mailglass_reconcile_runs)
"""


@pytest.fixture
def old(db):
    """Insert old rows for every step, and return the database with a retention for each."""
    for status, days in (("succeeded", 15), ("succeeded", 13), ("dead", 91), ("failed", 400)):
        raw_webhooks.insert(db, status=status, ago=days * DAY)
    for state, days in (("done", 20), ("dead", 100)):
        db.run(JOB, state=state, days=days)
    factories.delivery(db, "linked")
    factories.orphan(db, factories.postmark("linked"))
    assert mailglass_reconcile.reconcile().linked == 1
    factories.orphan(db, factories.postmark("x"), age_seconds=8 * DAY)
    settled = factories.orphan(db, factories.postmark("x"), age_seconds=600)
    missing = factories.orphan(db, factories.postmark("x"), age_seconds=1_200)
    # By its id it has expired; its time of insertion may be the local time of its session.
    late = factories.orphan(db, {}, id=factories.uuid7(7.2 * DAY), age_seconds=6.9 * DAY)
    with db.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        factories.insert(connection, events=[factories.reconciled_row(settled, None)])
        connection.exec_driver_sql(
            f"DELETE FROM mailglass_open_orphans WHERE event_id IN ('{missing}', '{late}')"  # noqa: S608
        )
    with days_ago(db, 40):
        delivery = factories.delivery(db, "m-1")
        row = factories.orphan_row({}, delivery_id=delivery, needs_reconciliation=False, age_seconds=0)
        factories.insert(db, events=[row])
    db.broken.update(("I13", "I14", "I1", "I2"))
    days = {
        "retention_succeeded_days": 14,
        "retention_dead_days": 90,
        "retention_failed_days": 365,
        "retention_events_days": 30,
        "retention_deliveries_days": 30,
    }
    return Database(db.engine, db.settings.model_copy(update=days))


def test_each_step_counts_what_the_prune_then_changes(db, old):
    """The preview writes nothing, not even a row of the history."""
    before = db.value(ROWS)
    previews = {preview.step: preview for preview in prune_preview.preview(old)}
    assert db.value(ROWS) == before
    fields = pruner.prune_with(old).as_dict()
    assert {step: preview.rows for step, preview in previews.items()} == {step: fields[step] for step in previews}
    assert set(previews) == {name for name, value in fields.items() if isinstance(value, int)}
    assert min(preview.rows for preview in previews.values()) == 1


def test_the_oldest_of_each_is_shown(db, old):
    """Each step has its own column of time."""
    now = dt.datetime.now(dt.UTC)
    ages = {
        preview.step: (now - dt.datetime.fromisoformat(preview.oldest)) // dt.timedelta(days=1)
        for preview in prune_preview.preview(old)
    }
    expected = {"succeeded": 15, "dead": 91, "failed": 400, "jobs_done": 20, "jobs_dead": 100, "expired": 8}
    assert expected.items() <= ages.items()
    assert ages["events"] == 40
    assert pruner.prune_with(old).settled == 1


def test_what_has_no_retention_is_kept(db):
    """By default, failed webhooks, events and deliveries are kept."""
    raw_webhooks.insert(db, status="failed", ago=4_000 * DAY)
    previews = {preview.step: preview for preview in prune_preview.preview(db.database)}
    assert [(previews[step].rows, previews[step].days) for step in ("failed", "events", "deliveries")] == [
        (0, None)
    ] * 3


def test_the_command_prints_a_row_for_each_step(db):
    """A person sees counts and dates; `--json` prints an object for each step, which conforms to the schema."""
    raw_webhooks.insert(db, status="succeeded", ago=15 * DAY)
    stdout = commands.run(db, "prune", "--dry-run").stdout
    assert "succeeded raw webhooks" in stdout
    assert "(15 days ago)" in stdout
    assert "kept" in stdout
    lines = commands.conforming("prune_step", commands.run(db, "prune", "--dry-run", "--json").stdout)
    assert [line["step"] for line in lines][:2] == ["succeeded", "dead"]
    assert lines[0]["rows"] == db.value("SELECT count(*) FROM mailglass_webhook_events") == 1
    assert max(map(len, commands.run_on_terminal(db, "prune", "--dry-run").splitlines())) <= 80
    assert mailglass_reconcile.prune().succeeded == 1


@pytest.mark.slow
def test_missing_orphans_are_read_tenant_by_tenant_although_statistics_are_stale(db):
    """Otherwise each is compared with every tenant."""
    db.run("ALTER TABLE mailglass_events SET (autovacuum_enabled = off)")
    db.run(ORPHANS, number=2_000, is_orphan=False)
    db.run("ANALYZE mailglass_events")
    db.run(ORPHANS, number=2_000, is_orphan=True)
    with db.database.reading() as tx:
        plan = "\n".join(tx.execute("EXPLAIN " + prune_preview._MISSING, {"max_age_minutes": 10_080}).scalars())
    assert "mailglass_events_needs_reconcile_idx" in plan
    assert "Join Filter" not in plan
