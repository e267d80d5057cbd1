"""The recent sweep: what it looks at, when it looks again, and what it leaves to the full one."""

import pytest

import factories
from factories import delivery_row, insert, orphan_row, postmark
from mailglass_reconcile import reconcile, reconcile_recent
from mailglass_reconcile.sweep import windows


def links_at(db, age, interval=1.0):
    """Whether a recent sweep links an orphan of *age* seconds whose delivery is there."""
    insert(db, [delivery_row(f"m{age}")], [orphan_row(postmark(f"m{age}"), age_seconds=age)])
    return reconcile_recent(interval).linked == 1


@pytest.mark.parametrize("age", [0, 1, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5, 256.5])
def test_what_is_new_or_has_just_reached_a_power_of_two_is_linked(db, age):
    """In its grace or not; with a second between ticks."""
    assert links_at(db, age)


@pytest.mark.parametrize("age", [3.4, 6.5, 11, 19, 35, 67, 131, 260, 3_600])
def test_what_lies_between_is_left_to_a_later_tick(db, age):
    """A tick costs what is due, not what is open; the full sweep links the rest."""
    assert not links_at(db, age)
