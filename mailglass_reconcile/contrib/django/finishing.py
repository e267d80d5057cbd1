"""What follows a commit: in a request once, at its end, because Anymail hands over the events of a batch one by one.

Otherwise five hundred events would open five hundred connections for the second look, and wait as often for a Redis
that does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from django.core.signals import request_finished, request_started
from django.db import transaction

from mailglass_reconcile.contrib.django import database
from mailglass_reconcile.record.after_commit import Recorded, RecordedDelivery, finish_quietly

_kept: ContextVar[list[Recorded | RecordedDelivery] | None] = ContextVar("mailglass_reconcile", default=None)
"""What the current request has committed; None outside of requests."""


def connect() -> None:
    """Listen to where requests begin and end; a second call changes nothing."""
    request_started.connect(_begin, dispatch_uid="mailglass_reconcile.begin")
    request_finished.connect(_end, dispatch_uid="mailglass_reconcile.end")


def finish(recorded: Sequence[Recorded | RecordedDelivery]) -> None:
    """Tell subscribers of *recorded*, and look once more for its ids, when Django has committed."""
    transaction.on_commit(partial(_committed, recorded), using=database.alias(), robust=True)


def _committed(recorded: Sequence[Recorded | RecordedDelivery]) -> None:
    kept = _kept.get()
    if kept is None:
        finish_quietly(recorded, database.connection)
    else:
        kept.extend(recorded)


def _begin(**_others: Any) -> None:
    _kept.set([])


def _end(**_others: Any) -> None:
    kept = _kept.get()
    _kept.set(None)
    if kept:
        finish_quietly(kept, database.connection)
