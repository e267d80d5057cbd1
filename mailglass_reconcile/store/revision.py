"""The revision of our tables that this version works on, and the remedy for any other."""

from __future__ import annotations

from typing import NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError

VERSION_TABLE = "mailglass_reconcile_version"
"""Alembic's table, which has the revision."""

VERSION = "0001h"
"""The Alembic revision that this version works on."""

READ = "SELECT max(version_num) FROM {schema}.mailglass_reconcile_version"


class SchemaMismatch(NamedTuple):
    """The reason why this version does not work on a database, and the remedy."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


def find_mismatch(version: str | None) -> SchemaMismatch | None:
    """Return why this version does not work on a database at *version*, and the remedy; None if it works.

    Until the first release the only revision has another id whenever it changes, so an earlier one cannot be migrated.
    """
    if version == VERSION:
        return None
    if version is None:
        return SchemaMismatch(
            f"the database is not migrated, this version needs {VERSION}", "run `mailglass-reconcile migrate`"
        )
    if version > VERSION:
        return SchemaMismatch(
            f"the database is at revision {version}, this version knows {VERSION}",
            "install the newer mailglass-reconcile here",
        )
    return SchemaMismatch(
        f"the database is at revision {version} of an unreleased version, this one needs {VERSION}",
        "run `mailglass-reconcile migrate --remove`, and then `mailglass-reconcile migrate`",
    )


def require(version: str | None) -> None:
    """Raise `SchemaOutdatedError` unless *version* is `VERSION`."""
    if mismatch := find_mismatch(version):
        raise SchemaOutdatedError(str(mismatch))
