"""Repairs of the open set by the prune: the arrival of orphans that no trigger saw, and what closes none."""

import uuid

import pytest

from factories import uuid7
from history import ORPHAN, new_id
from marking import nightly_unless
from open_set import age, insert

pytestmark = pytest.mark.slow

UNSEEN = """
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at)
VALUES ('{id}', 'acme', 'delivered', now(), true, {inserted_at})
"""
UTC_NOW = "(now() AT TIME ZONE 'UTC')"


@pytest.mark.parametrize("hours", nightly_unless((-8).__eq__, [-8, 0, 9, 14]))
@pytest.mark.parametrize("how", ["fill", "repair"])
def test_an_orphan_that_the_trigger_did_not_see_arrived_when_its_uuid_was_made(unmigrated, how, hours):
    """Its `inserted_at` is the local time of a session west or east of UTC."""
    database = unmigrated
    fresh, expired = uuid7(3 * 3600), uuid7(7 * 86_400 + 600)
    if how == "repair":
        database.migrate()
    for id_, seconds in ((fresh, 3 * 3600), (expired, 7 * 86_400 + 600)):
        local = f"{UTC_NOW} - interval '{seconds} seconds' + interval '{hours} hours'"
        database.run(UNSEEN.format(id=id_, inserted_at=local))
    if how == "repair":
        database.prune()
    else:
        database.migrate()
    assert database.open_set() == {fresh}
    assert abs(age(database, fresh) - 3 * 3600) < 60


@pytest.mark.parametrize(
    ("id_", "inserted_at", "expected_age"),
    [
        ("4", f"{UTC_NOW} - interval '1 hour'", 3600),
        ("4", f"{UTC_NOW} + interval '9 hours'", 0),
        ("7 a year old", f"{UTC_NOW} - interval '1 hour'", 3600),
        ("7 of the year 9999", f"{UTC_NOW} - interval '1 hour'", 3600),
        ("7 of the last millisecond", f"{UTC_NOW} - interval '1 hour'", 3600),
    ],
)
def test_an_id_with_an_implausible_time_is_ignored(database, id_, inserted_at, expected_age):
    """`inserted_at` counts then."""
    event_id = {
        "4": new_id(),
        "7 an hour old": uuid7(3600),
        "7 a year old": uuid7(365 * 86_400),
        "7 of the year 9999": uuid7(-7_900 * 365 * 86_400),
        "7 of the last millisecond": "ffffffff-ffff-7000-8000-000000000001",
    }[id_]
    database.run(UNSEEN.format(id=event_id, inserted_at=inserted_at))
    database.prune()
    assert abs(age(database, event_id) - expected_age) < 60


@pytest.mark.guard
@pytest.mark.parametrize("forged", ["tenant", "type"])
def test_a_forged_reconciled_event_closes_no_orphan(database, forged):
    event_id = new_id()
    database.run(ORPHAN.format(id=event_id, age="1 minute"))
    row = {
        "tenant": "mallory" if forged == "tenant" else "acme",
        "type": "opened" if forged == "type" else "reconciled",
    }
    with database.engine.begin() as connection:
        insert(connection, key=f"reconciled:{event_id}", orphan=False, delivery=str(uuid.uuid4()), **row)
    assert database.open_set() == {event_id}
    result = database.prune()
    assert (result.settled, result.added) == (0, 0)
    database.run("DELETE FROM mailglass_open_orphans")
    assert database.prune().added == 1
    assert database.open_set() == {event_id}
