"""The pictures of the documentation have a transparent background and follow the reader's colour scheme."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.version_independent

DOCS = Path(__file__).parents[2] / "docs"
CHARTS = [*sorted((DOCS / "performance").glob("*.svg")), *(DOCS.parent / "bench" / "results").glob("*.svg")]
PICTURES = [*CHARTS, DOCS / "race.svg", DOCS / "data.svg"]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_follows_the_readers_colour_scheme(picture):
    """Black on white is too bright in a dark page."""
    assert re.search(r"prefers-color-scheme: ?dark", picture.read_text())


@pytest.mark.parametrize("chart", CHARTS, ids=lambda path: path.name)
def test_a_chart_has_no_ground_and_no_colour_of_one_scheme_only(chart):
    """Each colour is named, except those of clip paths; tick labels are readable numbers."""
    shapes = chart.read_text().partition("</style>")[2]
    assert "var(--ink)" in shapes
    assert not re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{3,6}|white|black)", shapes)
    assert not re.search(r">\d+(\.\d+)?e[+-]?\d", shapes)


def test_there_are_charts():
    """The benchmark writes them."""
    assert CHARTS
