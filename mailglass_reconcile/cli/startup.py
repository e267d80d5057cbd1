"""The first check of a command that continues to run: whether the database is the one that is meant."""

from __future__ import annotations

from contextlib import suppress

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DatabaseUnavailableError
from mailglass_reconcile.store import schema


def look_now() -> None:
    """Refuse to start on a database that is not migrated; one that cannot be reached may come up later."""
    with suppress(DatabaseUnavailableError), runtime.database().reading() as tx:
        schema.require_migrated(tx)
