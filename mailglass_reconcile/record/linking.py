"""Linking what is open for a writer's ids: in a send's own transaction, and once more after a writer's commit.

Of a send and a webhook whose transactions overlap, neither sees the other. Whichever commits last sees both when it
looks again, so that nobody waits for a lock and nothing waits for a sweep. The rule is the sweep's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import MailglassReconcileError, translated
from mailglass_reconcile.record.recorded import Look
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import slices
from mailglass_reconcile.store.database import Transaction, transaction
from mailglass_reconcile.store.engines import connect
from mailglass_reconcile.store.model import Link, Open
from mailglass_reconcile.sweep import batch, examination, match
from mailglass_reconcile.sweep.match import Event

logger = logging.getLogger(__name__)

ROUNDS = 10
"""How often a look is repeated: as long as somebody holds what it found, or it has linked a whole batch."""
PAUSE_SECONDS = 0.1
STATEMENT_TIMEOUT_MS = 2_000
SECONDS = 5.0
"""After this no further transaction of the looks of one call begins."""


def find(tx: Transaction, look: Look, settings: Settings) -> list[Open]:
    """Return what is open for *look*, with keys as this process computes them; at most a batch."""
    found = slices.wanted(tx, look.tenant_id, look.message_ids, look.event_ids, settings)
    return [orphan for orphan in found if examination.is_current(orphan.keys)]


def matching(tx: Transaction, orphans: Sequence[Open]) -> list[tuple[str, str]]:
    """Return those of *orphans* that have a delivery by the sweep's rule, each with it."""
    verdicts = match.match(tx, [Event(orphan.event_id, orphan.tenant_id, orphan.keys) for orphan in orphans])
    pairs = zip(orphans, verdicts, strict=True)
    return [(orphan.event_id, its.delivery_id) for orphan, its in pairs if its.delivery_id]


def look_again(looks: Iterable[Look]) -> list[Link]:
    """Link what is open for *looks*, in transactions of our own, and return the links; call it after the commit.

    What somebody else holds is tried again for a second. A fault of the database costs a line in the log: the next
    sweep links what was not linked.
    """
    links: list[Link] = []
    wanted = list(looks)
    if not wanted:
        return links
    settings = runtime.get_settings()
    deadline = time.monotonic() + SECONDS
    try:
        with connect(runtime.get_engine()) as connection:
            for look in _in_batches(wanted, settings.batch_size):
                _link(connection, settings, look, deadline, links)
    except (MailglassReconcileError, SQLAlchemyError) as error:
        shown = translated(error) if isinstance(error, DBAPIError) else error
        reason = shown if isinstance(shown, MailglassReconcileError) else type(shown).__name__
        logger.warning("cannot look once more for events of this call, which the next sweep links: %s", reason)
    return links


def _in_batches(looks: Sequence[Look], size: int) -> Iterator[Look]:
    """Yield one look for each tenant, or more if it names more than *size* ids."""
    for tenant_id in dict.fromkeys(look.tenant_id for look in looks):
        of_tenant = [look for look in looks if look.tenant_id == tenant_id]
        message_ids = tuple(dict.fromkeys(id_ for look in of_tenant for id_ in look.message_ids))
        event_ids = tuple(dict.fromkeys(id_ for look in of_tenant for id_ in look.event_ids))
        for start in range(0, max(len(message_ids), len(event_ids)), size):
            yield Look(tenant_id, message_ids[start : start + size], event_ids[start : start + size])


def _link(connection: sa.Connection, settings: Settings, look: Look, deadline: float, links: list[Link]) -> None:
    def expired() -> bool:
        return time.monotonic() > deadline

    for _ in range(ROUNDS):
        with transaction(
            connection,
            settings,
            read_only=True,
            snapshot=True,
            probes_only=True,
            statement_timeout_ms=STATEMENT_TIMEOUT_MS,
        ) as tx:
            orphans = find(tx, look, settings)
            pairs = matching(tx, orphans) if orphans else []
        if not pairs:
            return
        outcome = batch.link_batch(connection, settings, pairs, expired)
        links += outcome.links
        if outcome.outage is not None:
            raise outcome.outage
        if expired() or not (outcome.held or len(orphans) >= settings.batch_size):
            return
        if outcome.held:
            time.sleep(PAUSE_SECONDS)
