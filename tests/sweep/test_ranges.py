"""A backlog is cut into ranges of arrival without overlap or gap."""

from itertools import pairwise

import pytest

import factories
from factories import delivery_row, insert, orphan_row, postmark
from mailglass_reconcile import reconcile
from mailglass_reconcile.sweep import ranges, reconciler

pytestmark = pytest.mark.version_independent


def backlog(db, *ages: float, tenant: str = factories.TENANT, linked_every: int = 2) -> None:
    """Insert orphans of these ages in one transaction; every *linked_every*-th has a delivery."""
    ids = [factories.new_id() for _ in ages]
    rows = [orphan_row(postmark(id_), age_seconds=age, tenant_id=tenant) for id_, age in zip(ids, ages, strict=True)]
    insert(db, [delivery_row(id_, tenant_id=tenant) for id_ in ids[::linked_every]], rows)


def sizes(db, parts, tenant_id=None) -> list[int]:
    """Return the number of orphans of each range by a dry run."""
    edges = [(part.after, part.until) for part in parts]
    return [reconciler.prepare(tenant_id, dry_run=True, bounds=edge).run().scanned for edge in edges]


def test_the_ranges_hold_about_as_many_each_and_their_counts_add_up_to_one_sweeps(db):
    """103 orphans are cut into ranges of at most 10; orphans in their grace are in none."""
    backlog(db, *(100 + number for number in range(103)), 5, 10)
    sweep = reconciler.prepare(dry_run=True).run()
    eligible, parts = ranges.cut_window(db.database, None, 10)
    counts = sizes(db, parts)
    assert eligible == sum(counts) == sweep.scanned == 103
    assert len(parts) == 11
    assert max(counts) <= 10
    assert all(earlier.until == later.after for earlier, later in pairwise(parts))
    results = [reconciler.prepare(bounds=(part.after, part.until)).run() for part in parts]
    assert sum(result.linked for result in results) == sweep.linked == 52
    assert sum(result.unmatched for result in results) == sweep.unmatched == 51
    assert reconcile().linked == 0


def test_many_orphans_of_one_arrival_time_are_in_one_range_and_counted_once(db):
    """One transaction may leave more than a range is to hold, at either end or in the middle."""
    backlog(db, *[300.0] * 25, *(301 + number for number in range(10)), *[400.0] * 25, *[500.0] * 25)
    eligible, parts = ranges.cut_window(db.database, None, 10)
    result = sizes(db, parts)
    assert eligible == sum(result) == 85
    assert sorted(result)[-3:] == [25, 25, 25] or max(result) < 40
    assert all(part.after != part.until for part in parts)


def test_a_tenants_backlog_is_cut_by_itself_and_a_small_one_not_at_all(db):
    """Other tenants' orphans do not count."""
    backlog(db, *(100 + number for number in range(30)), tenant="big")
    backlog(db, *(100 + number for number in range(5)), tenant="small")
    eligible, parts = ranges.cut_window(db.database, "big", 10)
    assert (eligible, sizes(db, parts, "big")) == (30, [10, 10, 10])
    assert ranges.cut_window(db.database, "small", 10) == (5, [])
    assert ranges.cut_window(db.database, "\x00", 10) == (0, [])
    assert ranges.cut_window(db.database, None, 35) == (35, [])


def test_a_huge_backlog_gets_larger_ranges_instead_of_more_than_a_hundred(db):
    """Each range is one message to the broker."""
    backlog(db, *(100 + number for number in range(250)))
    _, parts = ranges.cut_window(db.database, None, 1)
    assert 80 <= len(parts) <= 100
    assert sum(sizes(db, parts[:5])) == 15
