"""The recent sweep: which orphans it links, and which it leaves to the full sweep."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
import meter
from factories import delivery_row, insert, orphan_row, postmark, reconciled_row
from mailglass_reconcile import reconcile, reconcile_recent
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.sweep.result import SweepResult

pytestmark = pytest.mark.long


def pairs_of_age(db, *ages: float) -> None:
    """Insert orphans of these ages, in seconds, and their deliveries."""
    ids = [factories.new_id() for _ in ages]
    rows = [orphan_row(postmark(id_), age_seconds=age) for id_, age in zip(ids, ages, strict=True)]
    insert(db, [delivery_row(id_) for id_ in ids], rows)


@pytest.mark.parametrize(
    ("interval", "seconds"), [pytest.param(0.1, 60, marks=pytest.mark.slow), (1.0, 60), (30.0, 90)]
)
def test_what_arrived_during_the_last_minute_or_three_intervals_is_linked_and_the_rest_is_left(db, interval, seconds):
    """Orphans in their grace are linked too; the full sweep links the rest."""
    recent_ages, older_ages = (0, 2.5, 30, seconds - 5), (seconds + 5, 260, 3_600)
    pairs_of_age(db, *recent_ages, *older_ages)
    result = reconcile_recent(interval)
    assert (result.linked, result.scanned, result.remaining) == (len(recent_ages), len(recent_ages), 0)
    assert reconcile().linked == len(older_ages)


def test_a_delivery_that_is_late_is_matched_at_the_next_tick_within_the_minute(db):
    """Later, the full sweep matches it."""
    insert(db, [], [orphan_row(postmark("m-1"), age_seconds=20), orphan_row(postmark("m-2"), age_seconds=70)])
    assert reconcile_recent().unmatched == 1
    insert(db, [delivery_row("m-1"), delivery_row("m-2")], [])
    assert reconcile_recent().linked == 1
    assert reconcile().linked == 1


def test_a_bounded_number_of_checked_orphans_the_newest_is_checked_again(db, set_limits):
    """A flood of ambiguous events costs each tick the same."""
    set_limits(most_checked=3)
    ids = [f"m-{n}" for n in range(6)]
    rows = [delivery_row(id_) for id_ in ids for _ in range(2)]
    insert(db, rows, [orphan_row(postmark(id_), age_seconds=10 + n) for n, id_ in enumerate(ids)])
    assert reconcile_recent().ambiguous == 6
    for id_ in ("m-0", "m-3"):
        db.run("DELETE FROM mailglass_deliveries WHERE id = (SELECT min(id::text)::uuid FROM mailglass_deliveries"
               " WHERE provider_message_id = :id)", id=id_)  # fmt: skip
    result = reconcile_recent()
    assert (result.linked, result.ambiguous, result.scanned) == (1, 5, 6)
    assert reconcile().linked == 0, "it is still in its grace"
    pairs_of_age(db, 0.5)
    assert reconcile_recent().linked == 2, "the new one, and m-3, which is one of the newest three now"


def test_bounds_of_the_interval_are_refused(db):
    """It must be a number above zero and at most a minute."""
    for interval in (0, -1, float("nan"), 61):
        with pytest.raises(ValueError, match="interval"):
            reconcile_recent(interval)


def test_an_arrival_ahead_of_the_databases_clock_is_linked(db):
    """An application whose clock is four minutes ahead sets `inserted_at` itself."""
    pairs_of_age(db, -240)
    assert reconcile_recent().linked == 1


def test_a_tenants_recent_sweep_links_nobody_elses(db):
    insert(
        db,
        [delivery_row(tenant, tenant_id=tenant) for tenant in ("a", "b")],
        [orphan_row(postmark(tenant), tenant_id=tenant, age_seconds=0) for tenant in ("a", "b")],
    )
    assert reconcile_recent(1.0, "a").linked == 1
    assert reconcile_recent(1.0, "c").scanned == 0
    assert reconcile_recent(1.0, "\x00").scanned == 0
    assert reconcile_recent(1.0).linked == 1


def test_keys_are_computed_once_and_stored_and_refused_orphans_do_not_hold_up_others(db):
    """An orphan in its grace gets its keys from the first tick; one that cannot be linked comes last."""
    factories.orphan(db, postmark("nobody"), age_seconds=0)
    assert reconcile_recent().unmatched == 1
    assert db.value("SELECT rank IS NOT NULL FROM mailglass_open_orphans")
    db.run("ALTER TABLE mailglass_deliveries ADD CONSTRAINT bad CHECK (NOT (terminal AND recipient = 'bad@x.com'))")
    insert(db, [delivery_row("bad", recipient="bad@x.com")], [orphan_row(postmark("bad"), age_seconds=1)])
    assert (reconcile_recent().failed, reconcile_recent(0.9).failed) == (1, 1)
    pairs_of_age(db, 0.5)
    result = reconcile_recent()
    assert (result.linked, result.failed, result.unmatched, result.status) == (1, 1, 1, "partial")
    db.run("ALTER TABLE mailglass_deliveries DROP CONSTRAINT bad")


def test_an_orphan_that_its_writer_still_holds_is_left_alone(db):
    """The sweep does not wait; the next tick links it."""
    pairs_of_age(db, 0)
    with db.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("SELECT * FROM mailglass_open_orphans FOR UPDATE")
        assert reconcile_recent().skipped_held == 1
    assert reconcile_recent().linked == 1


def test_an_orphan_whose_reconciled_event_came_first_is_closed_by_the_link_that_meets_its_key(db):
    """It is open until its delivery arrives, or until a prune."""
    row = orphan_row(postmark("x"), age_seconds=0)
    insert(db, [], [reconciled_row(row["id"], None)])
    insert(db, [], [row])
    assert reconcile_recent().unmatched == 1
    insert(db, [delivery_row("x")], [])
    result = reconcile_recent()
    assert (result.linked, result.skipped_held, result.remaining) == (0, 1, 0)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_a_burst_ends_a_recent_sweep_after_two_seconds_and_what_was_linked_is_whole(db):
    """The result says `partial`; later ticks and the full sweep link the rest."""
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"batch_size": 2}))
    pairs_of_age(db, *(0 for _ in range(300)))
    db.run(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05);"
        " RETURN NULL; END $$"
    )
    db.run("CREATE TRIGGER slow AFTER INSERT ON mailglass_events FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    result = reconcile_recent(0.1)
    assert result.status == "partial"
    assert 0 < result.linked < 2 * 2.5 / 0.05, "each batch of two takes as long as the trigger"
    assert result.duration_ms > 1_900
    db.run("DROP TRIGGER slow ON mailglass_events")
    db.run("DROP FUNCTION slow")


def test_a_recent_sweep_logs_nothing_that_the_full_sweep_says_anyway(db, caplog):
    """Mismatches and failing rules would be logged at every tick; the full sweep logs them."""
    insert(db, [delivery_row("m", tenant_id="other")], [orphan_row(postmark("m"), age_seconds=0)])
    assert reconcile_recent().tenant_mismatch == 1
    assert caplog.text == ""


# Older than the window of a recent sweep.
CROWD = """
SET LOCAL session_replication_role = replica;
SET LOCAL TimeZone = 'UTC';
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, rank, ids)
SELECT md5('event' || n)::uuid, 'acme', now()::timestamp - interval '10 minutes' - make_interval(secs => n * 0.5),
       'postmark', {rank}, 1 FROM generate_series(1, {rows}) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, 1, 'never-' || n FROM generate_series(1, {rows}) AS n;
"""


@pytest.fixture(params=[20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def crowded(request, mailglass_databases, template, redis_url) -> Iterator[sa.Engine]:
    """A database of old orphans that never match, whose statistics are those of empty tables."""
    with mailglass_databases.copy(template, redis_url) as copy:
        with copy.engine.begin() as connection:
            for table in ("mailglass_open_orphans", "mailglass_open_orphan_ids"):
                connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
                connection.exec_driver_sql(f"ANALYZE {table}")
            connection.exec_driver_sql(CROWD.format(rows=request.param, rank=provider_rules.rank_of("postmark")))
        mailglass_reconcile.configure(engine=copy.engine, settings=copy.settings)
        yield copy.engine
        mailglass_reconcile.configure()


def cost(engine: sa.Engine, sweep: Callable[[], SweepResult] = reconcile_recent) -> tuple[SweepResult, int, int]:
    """Sweep, and return the result, the number of statements and their buffers, but for what begins a transaction."""
    with meter.statements(engine) as sent, meter.plans(engine, with_begin=False) as plan:
        result = sweep()
    return result, len(sent), plan.buffers


def test_with_nothing_new_beside_many_orphans_a_tick_is_three_statements_and_at_most_100_buffers(crowded, set_limits):
    """Whatever the statistics, the statements are BEGIN, the window and the choice."""
    reconcile_recent()  # sets hint bits
    result, statements, buffers = cost(crowded)
    assert result.scanned == 0
    assert statements <= 3
    assert 0 < buffers <= 100
    set_limits(held_seconds=0)
    reconcile_recent()
    _, statements, buffers = cost(crowded)
    assert (statements <= 5, buffers <= 100) == (True, True), "with the row that it leaves in the history now and then"


def test_a_full_sweep_with_nothing_open_touches_at_most_100_buffers(db):
    """Its row in the history is included; table sizes are asked for only if there is something to read."""
    reconcile()
    result, statements, buffers = cost(db.engine, reconcile)
    assert (result.scanned, statements <= 5) == (0, True)
    assert 0 < buffers <= 100
