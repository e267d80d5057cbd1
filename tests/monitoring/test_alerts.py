"""Faults fire their alerts, by Prometheus's evaluation of real scrapes.

tests/ops/test_incidents.py plants a fault for each check, tests/stories/test_planted_faults.py those of processes.
"""

import pytest
from pydantic import SecretStr

import mailglass_reconcile
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark
from mailglass_reconcile import Settings, prune, reconcile
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.web import metrics
from scraping import delivery_of, parse_samples
from timeline import NO_SAMPLES, Timeline, needs_promtool

pytestmark = [pytest.mark.slow, needs_promtool, pytest.mark.version_independent]


@pytest.fixture
def timeline(db, tmp_path):
    """An empty history."""
    return Timeline(db, tmp_path)


def traffic(db, number, minutes_ago=30, **columns):
    """Insert deliveries of some time ago and their orphans."""
    ids = [f"m-{number}-{n}" for n in range(6)]
    orphans = [{**orphan_row(postmark(id_)), **columns} for id_ in ids]
    insert(db, [delivery_of(db, id_, minutes_ago) for id_ in ids], orphans)


def healthy(db, timeline, minutes_ago=30):
    """Let a system run for a quarter of an hour."""
    for number in range(3):
        traffic(db, number, minutes_ago)
        reconcile()
        timeline.scrape()


def test_a_healthy_system_and_a_thousand_foreign_events_fire_nothing(db, timeline):
    """For two hours mail is sent and linked; other software's events never match, and expire."""
    ages = (300, 80_000)
    insert(db, [], [orphan_row(postmark(f"foreign-{n}"), age_seconds=ages[n % 2]) for n in range(1_000)])
    for number in range(24):
        if number % 3 == 0:
            traffic(db, number)
        reconcile()
        if number == 20:
            db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")
            db.broken.add("I13")
            assert prune().expired == 1_000
        timeline.scrape()
    timeline.check_alerts()


def test_foreign_events_at_night_fire_nothing(db, timeline):
    """No mail is sent, nothing is linked, and events of other software arrive."""
    for number in range(24):
        insert(db, [], [orphan_row(postmark(f"foreign-{number}-{n}")) for n in range(20)])
        reconcile()
        timeline.scrape()
    timeline.check_alerts()


def test_an_unreachable_database_is_absent(db, timeline):
    """A process that does not answer is absent, too."""
    healthy(db, timeline)
    unreachable = Settings(database_url="postgresql://nobody@127.0.0.1:1/none")
    timeline.add(parse_samples(metrics.scrape(Database(engines.create_engine(unreachable), unreachable))), minutes=4)
    timeline.check_alerts()
    timeline.hold(minutes=2)
    timeline.check_alerts("Absent")
    timeline.add(NO_SAMPLES, minutes=7)
    timeline.check_alerts("Absent")


def test_a_finding_fires_until_it_is_fixed(db, timeline):
    """A transaction that does not end locks the deliveries, so linkable events are late."""
    healthy(db, timeline)
    insert_pairs(db, ["held"], age_seconds=9_000)
    db.run("UPDATE mailglass_deliveries SET inserted_at = inserted_at - interval '1 hour'")
    with db.engine.connect() as holder, holder.begin():
        holder.exec_driver_sql("SELECT FROM mailglass_deliveries FOR UPDATE")
        assert reconcile().skipped_held == 1
        timeline.scrape(minutes=9)
        timeline.check_alerts()
        timeline.scrape(minutes=3)
        timeline.check_alerts("Finding")
    reconcile()
    timeline.scrape()
    timeline.check_alerts()


def test_a_redis_that_refuses_broadcasts_fires_both_alerts(db, timeline):
    """Links are made. The check is about the last sweep, the other rule about every process."""
    healthy(db, timeline)
    unreachable = db.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    mailglass_reconcile.configure(engine=db.engine, settings=unreachable)
    for number in range(4):
        traffic(db, f"lost-{number}")
        assert reconcile().linked == 6
        timeline.scrape()
    timeline.check_alerts("BroadcastsLost", "Finding")


@pytest.mark.parametrize("tenant", ["acme", "other"])
def test_events_that_expire_although_a_delivery_has_their_id_fire(db, timeline, tenant):
    """Nothing has swept for a week, or the delivery is another tenant's; then the prune runs."""
    healthy(db, timeline)
    insert(db, [delivery_row("m-old", tenant_id=tenant)], [orphan_row(postmark("m-old"))])
    if tenant == "other":
        reconcile()
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")
    db.broken.add("I13")
    prune()
    timeline.scrape()
    timeline.check_alerts("Expired")
