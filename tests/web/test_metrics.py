"""`/metrics`: the history of runs and current facts in Prometheus's text format."""

import asyncio
import math
import re
import socket
import threading
import time

import pytest

import mailglass_reconcile
import meter
import sweeping
from browsing import TOKEN, Visitor, app
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark
from handling import failing, make_due
from mailglass_reconcile import Settings, dispatch, exposition, prune, reconcile
from mailglass_reconcile.ops.metrics import collect
from mailglass_reconcile.receiver import metrics as receiver_metrics
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.tables import handler_jobs
from mailglass_reconcile.web import create_app, metrics
from mailglass_reconcile.web.app import application
from scraping import delivery_of, parse_samples, scrape, value
from waiting import PATIENCE


def test_a_metrics_browser_shows_what_each_metric_counts_with_its_unit_and_labels(db):
    """It shows a HELP text alone, without those of other metrics."""
    for family in [*metrics.families(collect(db.database)), *receiver_metrics.families()]:
        help_ = family.documentation
        assert not re.match("(how|when|since|that|those|these|they|it|its)\\b", help_, re.I), family.name
        assert {label for label in family._labelnames if f"`{label}`" not in help_} == set(), family.name
        assert ("seconds" in family.name) <= ("in seconds" in help_ or "Seconds" in help_), family.name
        if "timestamp" in family.name:
            assert help_.startswith("Unix time"), family.name


def test_a_sweep_is_seen_in_the_next_scrape(db):
    before = scrape(db)
    assert value(before, "last_success_timestamp_seconds", kind="full") == 0
    assert value(before, "orphans_total", outcome="linked") == 0
    insert(db, [delivery_row("m-1")], [orphan_row(postmark(id_)) for id_ in ("m-1", "m-2")])
    reconcile()
    after = scrape(db)
    assert value(after, "up") == value(after, "triggers_present") == 1
    assert value(after, "runs_total", kind="full", status="ok") == 1
    assert value(after, "orphans_total", outcome="linked") == 1
    assert value(after, "orphans_total", outcome="unmatched") == 1
    assert value(after, "messages_total", outcome="published") == 2
    assert value(after, "open_orphans", state="unmatched") == 1
    for name, labels in (("last_success", {"kind": "full"}), ("open_orphans_counted", {})):
        assert 0 <= time.time() - value(after, f"{name}_timestamp_seconds", **labels) < 320
    assert math.isnan(value(after, "linkable_since_timestamp_seconds"))


def test_what_arrives_after_a_sweep_is_counted_and_late_after_its_grace(db):
    """A worker that was killed once left 56,000 events that no metric had."""
    reconcile()
    db.run("UPDATE mailglass_reconcile_runs SET covered_until = covered_until - interval '10 minutes'")
    insert_pairs(db, 2, age_seconds=400)
    insert_pairs(db, 1, age_seconds=5)
    after = scrape(db)
    assert value(after, "newer_orphans") == 3
    assert time.time() - value(after, "linkable_since_timestamp_seconds") == pytest.approx(340, abs=20)


@pytest.mark.slow
def test_linkable_orphans_have_a_timestamp(db):
    """The age of a timestamp grows while nothing sweeps."""
    rows = [orphan_row(postmark(id_), age_seconds=500) for id_ in ("m-1", "m-2")]
    insert(db, [delivery_row("m-1"), delivery_row("m-2")], rows)
    with sweeping.held(db.engine, free=1):
        reconcile()
    first = value(scrape(db), "linkable_since_timestamp_seconds")
    assert 200 < time.time() - first < 300
    assert value(scrape(db), "linkable_since_timestamp_seconds") == pytest.approx(first, abs=0.01)


@pytest.mark.slow
def test_counters_survive_the_prune(db):
    """The prune adds up old rows; a counter that decreases would look like a restart."""
    insert_pairs(db, ["m-1"])
    reconcile()
    before = scrape(db)
    db.run("UPDATE mailglass_reconcile_runs SET started_at = started_at - interval '40 days',"
           " finished_at = finished_at - interval '40 days'")  # fmt: skip
    prune()
    after = scrape(db)
    for name, labels in before:
        if name.endswith("_total"):
            assert after[name, labels] >= before[name, labels], name
    assert value(after, "orphans_total", outcome="linked") == 1


@pytest.mark.slow
def test_what_expires_although_a_delivery_has_its_id_is_counted_apart(db):
    """Mail of other software expires every day without harm."""
    insert(
        db,
        [delivery_row("m-1", tenant_id="other")],
        [orphan_row(postmark(id_)) for id_ in ("m-1", "foreign-1", "foreign-2")],
    )
    reconcile()
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")
    db.broken.add("I13")
    assert prune().expired == 3
    after = scrape(db)
    assert value(after, "expired_orphans_total", delivery="found") == 1
    assert value(after, "expired_orphans_total", delivery="none") == 2
    assert value(after, "orphans_total", outcome="unmatched") == 2, "the sweep's, not the prune's"


@pytest.mark.slow
def test_dead_and_retried_jobs_are_counted(handler_db):
    """Dead jobs and jobs that wait for a retry have their own series."""
    failing("one", ValueError())
    insert_pairs(handler_db, ["m-1"])
    reconcile()
    dispatch()
    assert value(scrape(handler_db), "handler_jobs", state="waiting") == 1
    handler_db.run("UPDATE mailglass_handler_outbox SET attempts = 3")
    assert value(scrape(handler_db), "handler_jobs", state="failing") == 1
    handler_db.run("UPDATE mailglass_handler_outbox SET attempts = :most", most=handler_jobs.MOST_ATTEMPTS - 1)
    make_due(handler_db)
    dispatch()
    assert value(scrape(handler_db), "handler_jobs", state="dead") == 1


@pytest.mark.slow
def test_missing_triggers_are_reported(db):
    """Without them, new orphans would be missed."""
    db.broken.add("I13")
    db.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    assert value(scrape(db), "triggers_present") == 0


def test_a_database_that_is_away_or_not_migrated_is_down_and_says_nothing_else(empty_database_url):
    """No other figure is exposed, because it could be taken for a good one."""
    for url in ("postgresql://nobody@127.0.0.1:1/none", empty_database_url):
        settings = Settings(database_url=url)
        assert parse_samples(metrics.scrape(Database(engines.create_engine(settings), settings))) == {("up", ()): 0}


def test_the_address_needs_the_token(db):
    """Prometheus sends it in the header."""
    closed = app(db)
    assert Visitor(closed, None).get("/metrics").status_code == 401
    assert Visitor(closed, None).get(f"/metrics?token={TOKEN}").status_code == 401
    answer = Visitor(closed).get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, exposition.CONTENT_TYPE)
    assert value(parse_samples(answer.content), "up") == 1


@pytest.mark.slow
def test_metrics_answer_while_the_database_is_unreachable(db):
    """The response is immediate, so that Prometheus gets it."""
    unreachable = Settings(database_url="postgresql://nobody@127.0.0.1:1/none", web_token=TOKEN)
    mailglass_reconcile.configure(settings=unreachable)
    answer = Visitor(create_app()).get("/metrics")
    assert (answer.status_code, parse_samples(answer.content)) == (200, {("up", ()): 0})
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_down_within_two_seconds():
    """It accepts connections; that alone would have five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as quiet:
        settings = Settings(database_url=f"postgresql://a@127.0.0.1:{quiet.getsockname()[1]}/x")
        visitor = Visitor(application(TOKEN, engines.create_engine(settings)))
        started_at = time.monotonic()
        assert parse_samples(visitor.get("/metrics").content) == {("up", ()): 0}
        assert time.monotonic() - started_at < 4


@pytest.mark.slow
def test_the_scrape_after_a_late_one_waits_for_the_same_read(db):
    """Scrapes of a database that hangs take one connection, however many there are."""
    with meter.statements(db.engine) as once:
        scrape(db)
    visitor = Visitor(app(db))
    database_answers = threading.Event()

    def hang(*_arguments):
        database_answers.wait(PATIENCE)

    async def ask():
        late = await visitor.get_in_loop("/metrics")
        database_answers.set()
        return late, await visitor.get_in_loop("/metrics")

    with meter.before_statements(db.engine, hang), meter.statements(db.engine) as sent:
        answers = asyncio.run(ask())
    assert [value(parse_samples(answer.content), "up") for answer in answers] == [0, 1]
    assert len(sent) == len(once)


def cost_of_a_scrape(db):
    """Scrape, check the number of statements, and return the buffers that they read."""
    scrape(db)  # sets hint bits
    with meter.statements(db.engine) as sent, meter.plans(db.engine) as plan:
        assert value(scrape(db), "up") == 1
    assert len(sent) <= 24
    return plan.buffers


@pytest.mark.slow
def test_a_scrape_is_a_fixed_number_of_statements_that_do_not_read_what_is_open(db):
    """With 30,000 deliveries and events it reads as little as with none."""
    insert(db, [delivery_of(db, "m-1", 20)], [orphan_row(postmark("foreign"))])
    reconcile()
    few = cost_of_a_scrape(db)
    db.run(
        """INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain,
               last_event_type, last_event_at, inserted_at, updated_at)
           SELECT (lpad(to_hex(((extract(epoch FROM now()) - n) * 1000)::bigint), 12, '0') || '7'
                   || substr(md5(n::text), 1, 19))::uuid,
                  'acme', 'W', 't', 'a@example.com', 'example.com', 'dispatched',
                  now() - interval '2 days', now(), now()
             FROM generate_series(1, 30000) AS n"""
    )
    db.run(
        """INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at)
           SELECT gen_random_uuid(), 'acme', (now() AT TIME ZONE 'UTC') - make_interval(secs => n)
             FROM generate_series(1, 30000) AS n"""
    )
    db.broken.add("I13")
    assert cost_of_a_scrape(db) < 1.5 * few
    db.run("DELETE FROM mailglass_open_orphans WHERE event_id NOT IN (SELECT id FROM mailglass_events)")
