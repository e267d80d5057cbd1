"""Running one handler on one event, under a savepoint; a handler may fail in any way, which costs that handler only."""

from __future__ import annotations

import datetime as dt
import inspect
import logging
import time
import traceback
from pathlib import Path
from typing import Any
from uuid import UUID

from mailglass_reconcile.hooks.connections import Work
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules import providers
from mailglass_reconcile.rules.addresses import is_erased
from mailglass_reconcile.rules.events import DeliveryEvent
from mailglass_reconcile.rules.handlers import Registered
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import outbox
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.outbox import Held

logger = logging.getLogger(__name__)

HANDLER_SECONDS = 30
"""What one statement of a handler, and a handler in all, may take."""


def missing(row: Held) -> list[Registered]:
    """Return the handlers that are not done with an event yet."""
    return [one for one in registry.handlers_of(row.type) if one.name not in row.done]


def run(work: Work, settings: Settings, handler: Registered, row: Held) -> str | None:
    """Run one handler under a savepoint, and return the class of its error, or None.

    That it is done is noted first, under the same savepoint: whatever undoes its work later undoes the note as well.
    """
    began = time.monotonic()
    try:
        with work.savepoint():
            outbox.note(Transaction(work.ours, settings), row.event_id, handler.name)
            _require_finished(handler.function(work.connection, _event(row)))
            if time.monotonic() - began > HANDLER_SECONDS:
                raise TimeoutError
    except Exception as error:  # an application's handler may fail in any way, which costs that handler only
        if work.ours.closed or work.ours.invalidated:
            raise
        return log_error(handler, row.event_id, row.attempts, error)
    return None


def log_error(handler: Registered, event_id: str, attempt: int, error: Exception) -> str:
    """Log a handler's error by its class and place, because its words may hold an address; return the class."""
    name = type(error).__name__[: registry.MAX_NAME]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if handler.place and frame.filename == handler.place[0]] or frames
    at = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    logger.warning("handler %s failed on event %s, attempt %d: %s%s", handler.name, event_id, attempt, name, at)
    return name


def _require_finished(returned: Any) -> None:
    """Fail if a handler returned what has yet to be awaited or iterated: it has done nothing."""
    if inspect.isawaitable(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise TypeError("the handler returned a coroutine or generator, which is never run")


def _event(row: Held) -> DeliveryEvent:
    return DeliveryEvent(
        event_id=UUID(row.event_id),
        type=row.type,
        occurred_at=row.occurred_at.replace(tzinfo=dt.UTC),
        tenant_id=row.tenant_id,
        delivery_id=UUID(row.delivery_id),
        provider=providers.canonical(row.provider) if row.provider else None,
        message_id=row.message_id,
        recipient=None if row.recipient and is_erased(row.recipient) else row.recipient,
        reject_reason=row.reject_reason,
        attempt=row.attempts,
    )
