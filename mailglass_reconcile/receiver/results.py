"""The results of webhooks: counted, and refusals stored for the check `webhooks`.

Each process counts in memory, and its background thread writes, at most once a minute; no request waits for it. What a
stranger can choose is not stored: a row has a provider that we know, a tenant with a secret, and a cause in our words.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import sqlalchemy as sa

from mailglass_reconcile import runtime, telemetry
from mailglass_reconcile.providers import registry
from mailglass_reconcile.pubsub.background import Queue
from mailglass_reconcile.record import after_commit
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.store.engines import database_identity
from mailglass_reconcile.store.tables import refusals
from mailglass_reconcile.store.tables.refusals import Refused, Source

logger = logging.getLogger(__name__)

WRITE_SECONDS = 60.0
"""Seconds for which a process counts before it writes."""
MAX_SOURCES = 10_000
"""Providers and tenants that are counted until then; those of further ones are counted by the instrument alone."""

Result = Literal["received", "refused", "failed"]


@dataclass(slots=True)
class RequestResult:
    """Counts the result of a request to a webhook's address.

    Attributes:
        provider: The provider's name as it came.
        engine: The database in which refusals are stored; None stores none.
        is_webhook: False for a method other than POST, which is not counted.
        tenant_id: The tenant, if the provider's secrets depend on it; otherwise empty.
    """

    provider: str
    engine: sa.Engine | None
    is_webhook: bool = True
    tenant_id: str = ""

    def count(self, result: Result, cause: str | None = None) -> None:
        """Count the result; one with a *cause*, in a word of ours, is stored, and so is that a webhook was received."""
        if not self.is_webhook:
            return
        is_known = registry.is_known(self.provider)
        name = provider_rules.canonical(self.provider) if is_known else "unknown"
        telemetry.count_webhook(name, result)
        if self.engine is not None and is_known and (result == "received" or cause):
            with suppress(Exception):  # as below
                _count(self.engine, Source(name, self.tenant_id), result, cause)


def own_engine() -> sa.Engine | None:
    """Return this process's engine, or None if it has none."""
    with suppress(Exception):  # a framework's settings may be wrong in any way
        return runtime.get_engine()
    return None


@dataclass(slots=True, eq=False)
class _Batch:
    """The counts to write to a database, and the cause of the last refusal."""

    engine: sa.Engine
    database: str
    counts: dict[Source, Counter[Result]] = field(default_factory=dict)
    causes: dict[Source, str] = field(default_factory=dict)


_batches: dict[str, _Batch] = {}
_lock = threading.Lock()


def _count(engine: sa.Engine, source: Source, result: Result, cause: str | None) -> None:
    database = database_identity(engine)
    with _lock:
        is_new = database not in _batches
        batch = _batches.setdefault(database, _Batch(engine, database))
        if source in batch.counts or len(batch.counts) < MAX_SOURCES:
            batch.counts.setdefault(source, Counter())[result] += 1
            if cause:
                batch.causes[source] = cause
    if is_new and not _queue.put(batch):
        _batches.pop(database, None)


def _write_all(batches: Sequence[_Batch]) -> Sequence[_Batch]:
    """Write batches in the background thread; what is counted from now on goes into others."""
    for batch in batches:
        with _lock:
            _batches.pop(batch.database, None)
        try:
            if database_identity(batch.engine) == batch.database:  # Django's tests are over before they are written
                after_commit.connections.run(batch.engine, partial(_write, batch))
        except Exception as error:  # a driver, or an application's engine, may raise anything
            logger.debug("the results of webhooks were not stored: %s", type(error).__name__)
    return ()


def _write(batch: _Batch, connected: OpenConnection) -> None:
    refused = [
        Refused(source, batch.counts[source]["refused"], batch.counts[source]["failed"], cause)
        for source, cause in sorted(batch.causes.items())
    ]
    if refused:
        with connected.writing(unwaited=True) as tx:
            refusals.add(tx, refused)
    received = sorted(source for source, counts in batch.counts.items() if counts["received"])
    if received:
        with connected.writing(unwaited=True) as tx:
            refusals.accept(tx, received)


def _start_anew() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent may hold it
    _lock = threading.Lock()
    _batches.clear()


_queue = Queue(_write_all, limit=1_000, batch=100, size=lambda _: 1, delay=WRITE_SECONDS)
os.register_at_fork(after_in_child=_start_anew)
