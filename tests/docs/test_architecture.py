"""The page on architecture agrees with the tree, the tests and import-linter's contracts."""

import re
import tomllib
from pathlib import Path

import pytest

import pages

pytestmark = pytest.mark.version_independent

TEXT = (pages.ROOT / "docs" / "architecture.md").read_text()
PACKAGE = pages.ROOT / "mailglass_reconcile"
PATHS = sorted(set(re.findall(r"`([\w.]+/[\w./-]*|\w+\.(?:pyi?|md|toml|yml))(?:::(\w+))?`", TEXT)))


def find_file(path: str) -> Path | None:
    """Return the file or folder that the page names, in the project or in the package."""
    return next((place / path for place in (pages.ROOT, PACKAGE) if (place / path).exists()), None)


def test_each_file_and_test_that_the_page_names_is_there():
    missing = [
        (path, name)
        for path, name in PATHS
        if (file := find_file(path)) is None or (name and f"def {name}(" not in file.read_text())
    ]
    assert missing == []
    assert len(PATHS) > 80


def test_each_wing_of_the_package_is_on_the_page():
    """The picture of the layers is import-linter's, which `docs/reference.py` draws; the wings are in it."""
    contracts = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    picture = TEXT.partition("```text")[2].partition("```")[0]
    for contract in contracts:
        if contract["type"] == "layers":
            names = {name for layer in contract["layers"] for name in re.findall(r"\w+", layer)}
            assert names <= set(re.findall(r"\w+", picture)), contract["name"]
    wings = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert wings - {"py.typed", "conftest"} <= set(re.findall(r"\w+", picture))


def test_the_page_has_at_most_two_pages():
    assert len(TEXT.split()) < 1_500
