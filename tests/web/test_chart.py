"""Charts: what they show of a young history and of any states, and colours that can be distinguished."""

import itertools
import re
from importlib import resources

import pytest

from mailglass_reconcile.ops.overview import BUCKETS, Sample
from mailglass_reconcile.web import chart

DAY = 86_400.0
CSS = resources.files("mailglass_reconcile.web").joinpath("static/page.css").read_text()


def test_a_new_installation_sees_its_first_sweeps_and_no_empty_day():
    """They were a hairline at the end of 24 empty hours."""
    now = 1_000_000.0
    for age, expected in ((2.0, 300.0), (3_600.0, 3_600.0), (2 * DAY, DAY)):
        span = chart.span(DAY, now, now - age)
        assert (span.ended - span.began, span.ended) == (expected, now)
        (band,) = chart.backlog([Sample(now - min(age, 60.0), {"unmatched": 3}, 0.0)], span).bands
        left, right = re.fullmatch(r"M([\d.]+) [\d.]+V[\d.]+H([\d.]+)V[\d.]+Z", band.path).groups()
        assert float(right) > float(left)
    assert chart.span(DAY, now, None).began == now - DAY
    assert chart.span(DAY, now, None).held == max(chart.HELD_SECONDS, 3 * DAY / BUCKETS)


def test_every_state_has_its_own_band_whether_it_is_known_or_not():
    """The known ones in their order, then the others by name."""
    span = chart.span(DAY, DAY, None)
    states = {"matched": 1, "later": 2, "unmatched": 3, "earlier": 4, "ambiguous": 0}
    drawn = chart.backlog([Sample(DAY - 60, states, 0.0)], span)
    assert [band.name for band in drawn.bands] == ["unmatched", "matched", "earlier", "later"]
    assert drawn.top == 10


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    digits = "".join(digit * 2 for digit in colour) if len(colour) == 3 else colour
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_colours_of_states_can_be_distinguished(scheme):
    """From the card by 3, as WCAG asks of graphics; from the next band by 2. It was 2.5 and 1.2."""
    colours = dict(re.findall(r"--(\w+): #([0-9a-f]{3,6});", CSS.split("prefers-color-scheme")[scheme]))
    for name in (*chart.STATES, "lag", "waiting", "linked", "soft"):
        assert contrast(colours[name], colours["card"]) >= 3, name
    for below, above in itertools.pairwise(chart.STATES):
        assert contrast(colours[below], colours[above]) >= 2, (below, above)
