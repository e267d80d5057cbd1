"""Backlog and lag over time: each bucket has its maximum, and lag grows while no sweep runs."""

import json

import pytest

import meter
from mailglass_reconcile.ops.time_series import _BUCKETS, BUCKETS, TimeBucket, load_series
from mailglass_reconcile.store.database import Transaction

DAY = 86_400
RUN = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, unmatched, remaining, open_groups,
                                      linkable_since)
VALUES (t(:at), t(:at), 'full', 'beat', 'ok', :unmatched, :unmatched + :matched, CAST(:groups AS jsonb), t(:since))
""".replace("t(:at)", "to_timestamp(:at)::timestamp").replace("t(:since)", "to_timestamp(:since)::timestamp")


def swept(tx, at: float, unmatched: int = 0, matched: int = 0, since: float | None = None) -> None:
    """Add a full sweep that ended at *at* and left orphans, the first of which could be linked *since* then."""
    groups = [{"state": "unmatched", "orphans": unmatched}, {"state": "matched", "orphans": matched}]
    tx.run(RUN, at=at, unmatched=unmatched, matched=matched, groups=json.dumps(groups), since=since)


def load_buckets(tx, seconds: float = DAY) -> list[TimeBucket]:
    """Return the buckets of a day."""
    return load_series(Transaction(tx.connection, tx.settings), seconds)


@pytest.fixture
def now(tx) -> float:
    """The transaction's time."""
    return tx.value("SELECT extract(epoch FROM now())::float8")


def find_bucket(buckets: list[TimeBucket], moment: float) -> TimeBucket:
    """Return the bucket of a moment."""
    return next(bucket for bucket in buckets if bucket.began <= moment <= bucket.ended)


def test_a_bucket_shows_the_most_that_any_of_its_sweeps_left(tx, now):
    """The last sweep after the incident hid it."""
    middle = now // 900 * 900 - 50 * 900 + 100
    swept(tx, now - DAY, 5)
    swept(tx, middle - 150, 5)
    for offset, unmatched, matched, since in (
        (0, 10, 0, None),
        (60, 900, 2, None),
        (120, 20, 408, -1_300),
        (180, 10, 0, None),
    ):
        swept(tx, middle + offset, unmatched, matched, None if since is None else middle + since)
    bucket = find_bucket(load_buckets(tx), middle)
    assert (bucket.states, bucket.left_linkable) == ({"unmatched": 900}, 408)
    assert bucket.lag_seconds == pytest.approx(1_300 + 180)
    assert bucket.silent_seconds == 0


def test_lag_goes_on_rising_while_nothing_sweeps(tx, now):
    """It grows until now; it was drawn as zero from a quarter of an hour after the last sweep on."""
    swept(tx, now - 20_000, 3)
    swept(tx, now - 10_000, 3, 1, now - 10_600)
    buckets = load_buckets(tx)
    assert buckets[-1].lag_seconds == pytest.approx(10_600)
    assert find_bucket(buckets, now - 5_000).lag_seconds == pytest.approx(5_600, abs=1_000)
    assert buckets[-1].states is None
    lags = [bucket.lag_seconds for bucket in buckets]
    assert lags == sorted(lags)


def test_a_silence_shows_how_long_it_lasted_until_the_next_sweep(tx, now):
    """Nothing that was open then may have been linkable, but nothing is known of what arrived since."""
    for before in (30_000, 20_000, 3_000, 2_000, 1_000, 100):
        swept(tx, now - before, 3)
    buckets = load_buckets(tx)
    assert max(bucket.silent_seconds for bucket in buckets) == pytest.approx(17_000)
    assert buckets[-1].silent_seconds == 0
    assert find_bucket(buckets, now - 12_000).states is None
    assert find_bucket(buckets, now - 19_500).states == {"unmatched": 3}


def test_a_bucket_that_has_just_begun_is_part_of_the_one_before(tx, now):
    """A bucket of its own would be a hairline and hide its incident."""
    swept(tx, now - DAY, 3)
    swept(tx, now - 1, 700, 5, now - 90)
    last = load_buckets(tx)[-1]
    assert last.ended - last.began > 300
    assert (last.states, last.left_linkable) == ({"unmatched": 700}, 5)


def test_a_new_installation_sees_its_first_sweeps_and_no_empty_day(tx, now):
    """They were a hairline at the end of 24 empty hours."""
    buckets = load_buckets(tx)
    assert buckets[-1].ended - buckets[0].began == pytest.approx(DAY)
    swept(tx, now - 2, 3)
    buckets = load_buckets(tx)
    assert buckets[-1].ended - buckets[0].began == pytest.approx(300)
    assert BUCKETS / 2 < len(buckets) <= BUCKETS + 1
    assert buckets[-1].states == {"unmatched": 3}


def test_a_sweep_at_the_end_of_time_costs_nothing(tx, now):
    """It would span some hundred million buckets."""
    swept(tx, now - 1_000, 3)
    tx.run(
        "INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, open_groups,"
        " linkable_since) VALUES (now(), '9999-12-31', 'full', 'beat', 'ok', '[]', '-infinity')"
    )
    assert len(load_buckets(tx)) <= BUCKETS + 1
    bounds = {"width": 900, "size": 100, "first": int(now - DAY) // 900, "last": int(now) // 900}
    transaction = Transaction(tx.connection, tx.settings)
    plan = meter.plan_of(transaction, lambda: transaction.execute(_BUCKETS, bounds).all())
    assert 0 < plan.most <= 1_000
