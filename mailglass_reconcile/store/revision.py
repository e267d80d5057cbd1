"""The revision of our tables that this version works on, and what to do about another one."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError

VERSION_TABLE = "mailglass_reconcile_version"
"""Alembic's table, which has the revision."""

VERSION = "0001f"
"""The Alembic revision that this version works on."""

READ = "SELECT max(version_num) FROM {schema}.mailglass_reconcile_version"


class Outdated(NamedTuple):
    """Why this version does not work on a database, and the step that cures it."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


def outdated(version: str | None) -> Outdated | None:
    """Return what to do about a database at *version*, or None if this version works on it.

    Until the first release the only revision has another id whenever it changes, so an earlier one cannot be migrated.
    """
    if version == VERSION:
        return None
    if version is None:
        return Outdated(
            f"the database is not migrated, this version needs {VERSION}", "run `mailglass-reconcile migrate`"
        )
    if version > VERSION:
        return Outdated(
            f"the database is at revision {version}, this version knows {VERSION}",
            "install the newer mailglass-reconcile here",
        )
    return Outdated(
        f"the database is at revision {version} of an unreleased version, this one needs {VERSION}",
        "run `mailglass-reconcile migrate --remove`, and then `mailglass-reconcile migrate`",
    )


def require(version: str | None) -> None:
    """Refuse a database at another revision than `VERSION`."""
    if found := outdated(version):
        raise SchemaOutdatedError(str(found))
