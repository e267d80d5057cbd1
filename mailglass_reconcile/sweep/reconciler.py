"""The sweep: the way of the data, from the open set to the broadcast."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import translated
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import open_orphans, schema
from mailglass_reconcile.store.database import Transaction, connect, transaction
from mailglass_reconcile.store.model import LAST_EVENT, Keys, Place, Slice
from mailglass_reconcile.sweep import keys, match
from mailglass_reconcile.sweep.batch import link_batch
from mailglass_reconcile.sweep.result import SweepResult

logger = logging.getLogger(__name__)


class Sweep:
    """One run over all eligible open orphans; `result` tells at any moment what it has come to."""

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        *,
        tenant_id: str | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Callable[[SweepResult], None] | None = None,
    ) -> None:
        """Prepare a sweep; nothing connects yet.

        Args:
            settings: Grace, maximum age, batch size, deadline, schema.
            publisher: Gets a message for both channels of each committed link.
            tenant_id: Sweep this tenant's orphans only.
            limit: Link at most this many.
            dry_run: Find and classify in read-only transactions; write and publish nothing.
            progress: Called with the counts so far, after each batch.
        """
        self.result = SweepResult(tenant_id=tenant_id, dry_run=dry_run)
        self._settings = settings
        self._publisher = publisher
        self._limit = limit
        self._progress = progress or (lambda result: None)
        self._deadline = time.monotonic() + settings.sweep_seconds
        self._window: Slice | None = None
        self._eligible = 0
        self.in_batch = False
        """Whether a batch is on its way from its claim to its count: its commit is known only at the end."""

    def run(self, engine: sa.Engine) -> SweepResult:
        """Sweep, and return the counts; a sweep that breaks off after it began says so in its status.

        Raises:
            MailglassReconcileError: Nothing was swept: no connection, a missing right, an outdated schema.
        """
        began = time.monotonic()
        try:
            with connect(engine) as connection:
                self._sweep(connection)
        except DBAPIError as error:
            if self._window is None:
                raise translated(error) from None
            self.result.status = "failed"
            logger.error("the sweep broke off: %s", translated(error))
        finally:
            self.result.settle(self._eligible)
            self.result.duration_ms = round((time.monotonic() - began) * 1000)
        return self.result

    def stop(self) -> None:
        """Let the deadline be now: the running batch ends, and no other begins. Safe in a signal handler."""
        self._deadline = time.monotonic()

    def _sweep(self, connection: sa.Connection) -> None:
        rest: Slice | None = None
        while rest is None or (rest.after != rest.until and not self._expired()):
            with self._reading(connection) as tx:
                rest = rest or self._survey(tx)
                piece = self._next_slice(tx, rest)
                values = open_orphans.read_values(tx, piece, keys.reads())
                computed = {value.event_id: keys.keys_of(value) for value in values}
                findings = match.match(tx, piece, computed)
            self.result.count(findings.states)
            for pairs in self._batches(findings.pairs):
                self.in_batch = True
                outcome = link_batch(connection, self._settings, pairs, self._expired)
                told = projector.broadcast(outcome.links, self._publisher.publish)
                self.result.add(len(outcome.links), len(outcome.failed), told.published, told.failed)
                self.in_batch = False
                self._progress(self.result)
                if outcome.outage is not None:
                    raise outcome.outage
                for link in outcome.links:
                    computed.pop(link.orphan_id, None)
            self._keep(connection, computed)
            rest = replace(rest, after=piece.until)
        if self._expired() and (self.result.skipped or rest.after != rest.until):
            self.result.status = "partial"
        self._count_remaining(connection)
        self._warn_of_mismatches()

    def _expired(self) -> bool:
        return time.monotonic() >= self._deadline

    def _reading(self, connection: sa.Connection) -> AbstractContextManager[Transaction]:
        left_ms = max(1_000, int((self._deadline - time.monotonic()) * 1000))
        return transaction(connection, self._settings, read_only=True, probes_only=True, statement_timeout_ms=left_ms)

    def _survey(self, tx: Transaction) -> Slice:
        """Look at the window of eligible orphans and at the schema, and return the whole window."""
        survey = open_orphans.survey(tx, self._settings, self.result.tenant_id)
        schema.require_current(survey.version)
        if not survey.triggers:
            logger.warning(
                "the triggers of the open set are missing or disabled: new orphans stay unseen until"
                " `mailglass-reconcile migrate` and `mailglass-reconcile prune` have mended it"
            )
        self._eligible = self.result.remaining = survey.eligible
        self._window = Slice(Place(survey.after, LAST_EVENT), Place(survey.until, LAST_EVENT), self.result.tenant_id)
        return self._window

    def _next_slice(self, tx: Transaction, rest: Slice) -> Slice:
        if self._eligible - self.result.seen <= open_orphans.SLICE_ORPHANS:
            return rest
        return replace(rest, until=open_orphans.slice_end(tx, rest))

    def _batches(self, pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
        """Yield *pairs* in batches, as far as the limit and the deadline go."""
        start = 0
        while start < len(pairs) and not self._expired():
            left = len(pairs) if self._limit is None else self._limit - self.result.linked
            batch = pairs[start : start + min(self._settings.batch_size, left)]
            if not batch:
                return
            if self.result.dry_run:
                self.result.add(len(batch))
            else:
                yield batch
            start += len(batch)

    def _keep(self, connection: sa.Connection, computed: Mapping[str, Keys]) -> None:
        """Store the keys of what stays open, so that no later sweep computes them again."""
        if computed and not self.result.dry_run:
            with transaction(connection, self._settings, probes_only=True) as tx:
                open_orphans.store_keys(tx, computed)

    def _warn_of_mismatches(self) -> None:
        if self.result.tenant_mismatch:
            logger.warning(
                "%d orphan(s) name deliveries of another tenant only and stay open: a Mailglass without"
                " resolve_webhook_tenant stamps every webhook with the tenant `default`",
                self.result.tenant_mismatch,
            )
        if self.result.recipient_mismatch:
            logger.warning(
                "%d orphan(s) name deliveries of another recipient only and stay open", self.result.recipient_mismatch
            )

    def _count_remaining(self, connection: sa.Connection) -> None:
        if self._window and (self.result.linked or self.result.skipped) and not self.result.dry_run:
            with self._reading(connection) as tx:
                self.result.remaining = open_orphans.count(tx, self._window)


def prepare(
    tenant_id: str | None = None,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    progress: Callable[[SweepResult], None] | None = None,
) -> Sweep:
    """Return a sweep, not yet begun, on this process's settings and Redis; `reconcile` describes the arguments.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        ValueError: *limit* is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    publisher = Publisher(runtime.get_redis())
    return Sweep(
        runtime.get_settings(), publisher, tenant_id=tenant_id, limit=limit, dry_run=dry_run, progress=progress
    )


def reconcile(tenant_id: str | None = None, limit: int | None = None) -> SweepResult:
    """Link every eligible orphan whose delivery is there, and tell of each link; return the counts.

    Takes no lock: any number of sweeps may run at once, in any number of processes.

    Args:
        tenant_id: Sweep this tenant's orphans only; None is all tenants.
        limit: Link at most this many; the rest stays open.

    Returns:
        The counts. A sweep that broke off half-way says so in its `status`.

    Raises:
        MailglassReconcileError: Nothing was swept: a setting, the connection, a right or the schema is wrong.
        ValueError: *limit* is below 1.
    """
    return prepare(tenant_id, limit).run(runtime.get_engine())
