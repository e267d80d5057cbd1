"""Looks at the database that write nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import Transaction, transaction
from mailglass_reconcile.store.engines import connect


@contextmanager
def reading(
    engine: sa.Engine,
    settings: Settings,
    *,
    snapshot: bool = False,
    probes_only: bool = False,
    statement_timeout_ms: int = 240_000,
) -> Iterator[Transaction]:
    """Give the block a connection of its own, in a read-only transaction of `transaction`, whose arguments these are.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    with (
        database_errors(),
        connect(engine) as connection,
        transaction(
            connection,
            settings,
            read_only=True,
            snapshot=snapshot,
            probes_only=probes_only,
            statement_timeout_ms=statement_timeout_ms,
        ) as tx,
    ):
        yield tx
