"""The first check of a long-running command: refuse a database that is not migrated."""

from __future__ import annotations

from contextlib import suppress

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DatabaseUnavailableError
from mailglass_reconcile.store import schema


def require_schema() -> None:
    """Raise an error if the database is not migrated; ignore a server that cannot be reached: it may start later."""
    with suppress(DatabaseUnavailableError), runtime.database().reading() as tx:
        schema.require_migrated(tx)
