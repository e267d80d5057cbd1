"""Faults fire their alerts, by Prometheus's evaluation of real scrapes.

tests/stories/test_planted_faults.py plants others, in a system with a worker and a beat.
"""

import datetime as dt

import pytest
from pydantic import SecretStr

import mailglass_reconcile
from factories import delivery_row, insert, orphan_row, postmark
from handling import failing, make_due
from mailglass_reconcile import SchemaOutdatedError, Settings, dispatch, prune, reconcile
from mailglass_reconcile.store import engines, outbox, schema
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.web import metrics
from scraping import delivery_of, parsed
from timeline import NOTHING, Timeline, needs_promtool

pytestmark = [pytest.mark.slow, needs_promtool]


@pytest.fixture
def timeline(db, tmp_path):
    """An empty history."""
    return Timeline(db, tmp_path)


def traffic(db, number, minutes_ago=30, **columns):
    """Insert deliveries of some time ago and the orphans that are theirs."""
    ids = [f"m-{number}-{n}" for n in range(6)]
    orphans = [{**orphan_row(postmark(id_)), **columns} for id_ in ids]
    insert(db, [delivery_of(db, id_, minutes_ago) for id_ in ids], orphans)


def healthy(db, timeline, minutes_ago=30):
    """Let a system work for a quarter of an hour."""
    for number in range(3):
        traffic(db, number, minutes_ago)
        reconcile()
        timeline.scrape()


def test_a_healthy_system_and_a_thousand_foreign_events_fire_nothing(db, timeline):
    """Over two hours in which mail is sent and linked; other software's events never match, and expire."""
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
    timeline.fires()


def test_foreign_events_at_night_fire_nothing(db, timeline):
    """No mail is sent, nothing is linked, and events of other software arrive."""
    for number in range(24):
        insert(db, [], [orphan_row(postmark(f"foreign-{number}-{n}")) for n in range(20)])
        reconcile()
        timeline.scrape()
    timeline.fires()


def test_a_database_that_is_away_is_absent(db, timeline):
    """And so is a process that does not answer."""
    healthy(db, timeline)
    away = Settings(database_url="postgresql://nobody@127.0.0.1:1/none")
    timeline.add(parsed(metrics.scrape(Database(engines.create_engine(away), away))), minutes=4)
    timeline.fires()
    timeline.hold(minutes=2)
    timeline.fires("Absent")
    timeline.add(NOTHING, minutes=7)
    timeline.fires("Absent")


def test_a_sweep_that_cannot_get_at_the_rows_is_lag(db, timeline):
    """Somebody holds the deliveries in a transaction that does not end."""
    healthy(db, timeline)
    insert(db, [delivery_row("held")], [orphan_row(postmark("held"), age_seconds=9_000)])
    db.run("UPDATE mailglass_deliveries SET inserted_at = inserted_at - interval '1 hour'")
    with db.engine.connect() as other, other.begin():
        other.exec_driver_sql("SELECT FROM mailglass_deliveries FOR UPDATE")
        for _ in range(2):
            assert reconcile().skipped_held == 1
            timeline.scrape()
    timeline.fires("LinkableLag")
    reconcile()
    timeline.scrape()
    timeline.fires()


def test_a_trigger_that_was_dropped_is_missing(db, timeline):
    """No other figure changes."""
    healthy(db, timeline)
    db.broken.add("I13")
    db.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    for _ in range(2):
        reconcile()
        timeline.scrape()
    timeline.fires("TriggersMissing")


def test_sweeps_that_fail_one_after_the_other_are_seen_and_one_alone_is_not(db, timeline):
    """Celery counts them as successful tasks."""
    healthy(db, timeline)
    for number in range(2):
        traffic(db, f"failing-{number}")
        db.run("ALTER TABLE mailglass_events RENAME COLUMN normalized_payload TO gone")
        assert reconcile().status == "failed"
        timeline.scrape(minutes=3)
        db.run("ALTER TABLE mailglass_events RENAME COLUMN gone TO normalized_payload")
        timeline.fires(*["FailedSweeps"][:number])


def test_an_outdated_schema_lets_no_sweep_begin(db, timeline):
    """Which leaves nothing in the history, not even a failure."""
    healthy(db, timeline)
    db.run("UPDATE mailglass_reconcile_version SET version_num = '0000'")
    with pytest.raises(SchemaOutdatedError):
        reconcile()
    timeline.scrape(minutes=1)
    timeline.hold(minutes=16)
    timeline.fires("NoSuccess", "Unusable")
    db.run("UPDATE mailglass_reconcile_version SET version_num = :version", version=schema.VERSION)


def test_webhooks_that_have_stopped_although_mail_goes_out_are_silence(db, timeline):
    """Reports came, and then no more; a provider that never had one fires nothing."""
    hours = {"reported": 50, "sent": 40}
    at = {name: str(dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(hours=n)) for name, n in hours.items()}
    sent = {"dispatched_at": at["sent"], "last_event_at": at["sent"]}
    insert(db, [delivery_row("never", provider="postmark", **sent), delivery_row("stopped", **sent)])
    for before in (True, False):
        for _ in range(4):
            reconcile()
            timeline.scrape()
        timeline.fires(*([] if before else ["Silent"]))
        insert(db, [delivery_row("old", last_event_type="delivered", last_event_at=at["reported"])])


def test_a_key_rule_that_is_missing_means_that_nothing_links(db, timeline):
    """The provider keeps its id somewhere else than the rule for any provider looks."""
    for number in range(6):
        traffic(db, number, metadata='{"provider": "homegrown", "place": {"id": "m-1"}}')
        assert reconcile().unmatchable == 6 * (number + 1)
        timeline.scrape()
    timeline.fires("NothingLinks")


def test_ids_that_never_match_mean_that_nothing_links(db, timeline):
    """The application stores another id than the webhooks have."""
    healthy(db, timeline, minutes_ago=300)
    for number in range(6):
        insert(
            db,
            [delivery_of(db, f"stored-{number}-{n}", 30) for n in range(2)],
            [orphan_row(postmark(f"sent-{number}-{n}")) for n in range(2)],
        )
        reconcile()
        timeline.scrape()
    timeline.fires("NothingLinks")


def test_webhooks_that_all_carry_another_tenant_are_a_mismatch(db, timeline):
    """The most frequent misconfiguration; nothing is linked, either."""
    for number in range(6):
        traffic(db, number, tenant_id="default")
        assert reconcile().linked == 0
        timeline.scrape()
    timeline.fires("NothingLinks", "TenantMismatch")


def test_stray_events_of_another_tenant_fire_nothing_where_webhooks_are_attached(db, timeline):
    """Where our writers link what they record, sweeps link nothing; and one or two events are nobody's tenant."""
    insert(db, [], [orphan_row(postmark("m-0-0"), tenant_id="default") for _ in range(2)])
    for number in range(6):
        insert(db, [delivery_of(db, f"m-{number}-{n}", 30, last_event_type="delivered") for n in range(number and 2)])
        assert reconcile().linked == 0
        if number == 0:
            insert(db, [delivery_of(db, "m-0-0", 30)])
        timeline.scrape()
    timeline.fires()
    insert(db, [], [orphan_row(postmark("m-0-0"), tenant_id="default") for _ in range(3)])
    for _ in range(4):
        reconcile()
        timeline.scrape()
    timeline.fires()


def test_a_redis_that_takes_no_broadcasts_fails_publishing(db, timeline):
    """Links are made."""
    healthy(db, timeline)
    away = db.settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    mailglass_reconcile.configure(engine=db.engine, settings=away)
    for number in range(4):
        traffic(db, f"lost-{number}")
        assert reconcile().linked == 6
        timeline.scrape()
    timeline.fires("PublishFailing")


def test_events_that_expire_although_a_delivery_has_their_id_are_seen(db, timeline):
    """Nobody has swept for a week, and then the prune comes."""
    healthy(db, timeline)
    insert(db, [delivery_row("m-old", tenant_id="other")], [orphan_row(postmark("m-old"))])
    reconcile()
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")
    db.broken.add("I13")
    prune()
    timeline.scrape()
    timeline.fires("Expired")


def test_a_handler_that_has_failed_for_the_last_time_is_dead(handler_db, timeline):
    """One that will be tried again is not."""
    failing("one", ValueError())
    traffic(handler_db, "handled")
    reconcile()
    timeline.scrape()
    dispatch()
    timeline.scrape(minutes=10)
    timeline.fires()
    handler_db.run("UPDATE mailglass_handler_outbox SET attempts = :most", most=outbox.MOST_ATTEMPTS - 1)
    make_due(handler_db)
    dispatch()
    timeline.scrape(minutes=6)
    timeline.fires("HandlersDead")
