"""Events whose handlers have failed for the last time: listing them, and letting them be tried again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import database_errors
from mailglass_reconcile.store import outbox
from mailglass_reconcile.store.database import in_batches
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.reading import reading

LISTED = 1_000
BATCH_ROWS = 5_000


def events(engine: sa.Engine) -> list[dict[str, Any]]:
    """Return the events that died last, at most 1,000, with the class of each one's last error and who is done.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    settings = runtime.get_settings()
    with reading(engine, settings) as tx:
        return outbox.dead(tx, LISTED)


def retry(engine: sa.Engine, event_id: UUID | None = None) -> int:
    """Let dead events, or one, be tried again as if they were new, and return how many; what was done stays done.

    Raises:
        MailglassReconcileError: The database refused, or cannot be reached.
    """
    wanted = {"event_id": None if event_id is None else str(event_id), "size": BATCH_ROWS}
    with database_errors(), connect(engine) as connection:
        return in_batches(connection, runtime.get_settings(), outbox.RETRY, wanted)
