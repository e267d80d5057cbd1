"""The revision of our tables: the one that this version works on, and the one that a database is at."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.store.wrong_schema import VERSION_TABLE, Reading

VERSION = "0001e"
"""The Alembic revision that this version works on."""

READ = "SELECT max(version_num) FROM {schema}.mailglass_reconcile_version"

# An ordinary table: reading a view would run its maker's code.
_EXISTS = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(:version) AND relkind = 'r')"


class Outdated(NamedTuple):
    """Why this version does not work on a database, and the step that cures it."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


def of_database(tx: Reading) -> str | None:
    """Return the revision that the database is at, or None if it is not migrated."""
    exists = tx.execute(_EXISTS, {"version": tx.name_of(VERSION_TABLE)}).scalar_one()
    version: str | None = tx.execute(READ).scalar_one() if exists else None
    return version


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
