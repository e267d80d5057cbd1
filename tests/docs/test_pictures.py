"""The pictures of the documentation have a transparent background and follow the reader's colour scheme."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.version_independent

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = [DOCS / "race.svg", DOCS / "data.svg", DOCS / "growth.svg"]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_follows_the_readers_colour_scheme(picture):
    """Black on white is too bright in a dark page."""
    assert re.search(r"prefers-color-scheme: ?dark", picture.read_text())
