"""What this version needs of the database."""

from __future__ import annotations

from mailglass_reconcile.errors import SchemaOutdatedError

VERSION = "0001"
"""The Alembic revision that this version works on."""

VERSION_TABLE = "mailglass_reconcile_version"


def require_current(version: str | None) -> None:
    """Refuse a database that is not at `VERSION`.

    Raises:
        SchemaOutdatedError: Saying what to run.
    """
    if version != VERSION:
        raise SchemaOutdatedError(
            f"the database is at revision {version or 'none'}, this version needs {VERSION}:"
            " run `mailglass-reconcile migrate`"
        )
