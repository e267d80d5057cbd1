"""Charts: the states that they show, their time axis, and distinguishable colours."""

import itertools
import re
from importlib import resources

import pytest

from mailglass_reconcile.ops.time_series import TimeBucket
from mailglass_reconcile.web import chart

pytestmark = pytest.mark.version_independent

HOUR = 3_600.0
CSS = resources.files("mailglass_reconcile.web").joinpath("static/page.css").read_text()


def bucket(number: int, states: dict[str, int] | None = None, matched: int = 0, lag: float = 0, silent: float = 0):
    """Return the bucket of an hour."""
    return TimeBucket(number * HOUR, (number + 1) * HOUR, states, matched, lag, silent)


def test_every_state_has_its_own_band_whether_it_is_known_or_not():
    """Known states come in order, then others by name; states without orphans have no band."""
    drawn = chart.draw_backlog([bucket(0, {"later": 2, "unmatched": 3, "earlier": 4, "ambiguous": 0})])
    assert [band.name for band in drawn.bands] == ["unmatched", "earlier", "later"]
    assert drawn.top == 10


def test_linkable_orphans_have_a_scale_of_their_own():
    """Ten of them over a hundred thousand others were once a hairline."""
    buckets = [bucket(0, {"unmatched": 100_000}, matched=9), bucket(1, {"unmatched": 90_000})]
    drawn = chart.draw_matched(buckets)
    assert (drawn.top, [band.name for band in drawn.bands]) == (10, ["matched"])
    assert drawn.bands[0].path == "M0.0 200.0V20.0H480.0V200.0Z"


def test_a_time_without_data_is_a_gap_and_not_zero():
    """This holds for shapes and values."""
    drawn = chart.draw_backlog([bucket(0, {"unmatched": 1}), bucket(1), bucket(2, {"unmatched": 1})])
    assert drawn.bands[0].path.count("M") == 2
    assert drawn.columns[1].values is None
    assert len(drawn.rows) == 2


def test_while_nothing_sweeps_the_lag_is_shown_as_not_known():
    drawn = chart.draw_lag([bucket(0, lag=1_200), bucket(1, lag=1_500, silent=5_000)])
    assert [band.name for band in drawn.bands] == ["lag", "silent"]
    assert drawn.columns[1].values == {"lag": 1_500, "silent": 3_500}
    assert drawn.top == 7_200


def test_the_peak_is_among_the_numbers_however_short_it_was():
    """Rows are spread evenly over the time."""
    drawn = chart.draw_matched([bucket(n, matched=500 if n == 13 else 1) for n in range(96)])
    assert [row.total for row in drawn.rows if row.peak] == [500]
    assert len(drawn.rows) == chart.ROWS + 1
    assert [row.began for row in drawn.rows] == sorted((row.began for row in drawn.rows), reverse=True)


@pytest.mark.parametrize(("hours", "step"), [(0.1, 60), (6, 3_600), (24, 14_400), (168, 172_800)])
def test_the_axis_of_time_has_ticks_at_round_moments(hours, step):
    """There are a few, none so close to an edge that its label is cut off."""
    first_second = 1_764_306_123.0
    parts = [
        TimeBucket(first_second + n * hours * 36, first_second + (n + 1) * hours * 36, {}, 0, 0, 0) for n in range(100)
    ]
    ticks = chart.draw_backlog(parts).ticks
    assert 2 <= len(ticks) <= chart.MOST_TICKS
    assert {tick.at % step for tick in ticks} == {0}
    assert all(chart.EDGES[0] <= tick.place <= chart.EDGES[1] for tick in ticks)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    digits = "".join(digit * 2 for digit in colour) if len(colour) == 3 else colour
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_colours_of_states_can_be_distinguished(scheme):
    """Their contrast is at least 3 with the card, as WCAG requires of graphics, and 2 with the next band."""
    colours = dict(re.findall(r"--(\w+): #([0-9a-f]{3,6});", CSS.split("prefers-color-scheme")[scheme]))
    for name in (*chart.STATES, "matched", "lag", "silent", "waiting", "linked", "soft"):
        assert contrast(colours[name], colours["card"]) >= 3, name
    for below, above in itertools.pairwise(chart.STATES):
        assert contrast(colours[below], colours[above]) >= 2, (below, above)
