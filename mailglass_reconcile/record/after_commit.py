"""After the caller's commit: broadcast what a writer attached or linked, and look once more for its ids.

`broadcast`, a Session that commits, and Django's `on_commit` enqueue; the background thread does the work, on a
connection of its own. It asks the database once for all calls that have come: which of the recorded events are there,
however their savepoints and transactions ended, and whether anything may match. Only what is there is broadcast.

Of a send and a webhook whose transactions overlap, neither sees the other. Whichever commits last sees both when its
ids are looked up again, so nothing waits for a lock, or for a sweep.

The caller has committed: nothing is raised, and a fault is one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import Pool
from sqlalchemy.util import greenlet_spawn

from mailglass_reconcile import projector, runtime, telemetry
from mailglass_reconcile.errors import is_data_error, is_transient, translate
from mailglass_reconcile.pubsub import Publisher, lazy_redis
from mailglass_reconcile.pubsub.background import Queue
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store import engines, ledger, open_orphans
from mailglass_reconcile.store.database import Connected, Transaction
from mailglass_reconcile.store.engines import as_session
from mailglass_reconcile.store.ledger import LinkedEvent
from mailglass_reconcile.sweep.link import Notes, Pairs
from mailglass_reconcile.sweep.matcher import match_orphans, unchecked_notes

logger = logging.getLogger(__name__)

MOST_STEPS = 10_000
"""Steps that wait in memory; what does not fit is dropped."""
STEPS_AT_ONCE = 500
GATHER_SECONDS = 0.02
"""How long the first of some calls waits for others, to be asked about together: calls in a row cost a quarter less."""
ATTEMPTS = 10
"""How often a look-up is repeated, every tenth of a second, while another session holds what it found."""
STATEMENT_TIMEOUT_MS = 5_000
REST_SECONDS = 5.0
"""A database that cannot be reached is left alone for so long."""

NOT_BROADCAST = "cannot broadcast the events of this call; the next sweep links those that arrived at the same time"


class Recheck(NamedTuple):
    """What to look up once more after the commit: open events for message ids, and open events themselves."""

    tenant_id: str
    message_ids: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Step:
    """What one result of a writer leaves to do after the commit; when it is done, nothing is left in it."""

    events: tuple[LinkedEvent, ...] = ()
    """What is broadcast, if it is there."""
    recheck: Recheck | None = None
    engine: sa.Engine | None = None
    attempts: int = 0
    """How often what the recheck found was held by another session."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result for one event.

    Attributes:
        event_id: Its id, or None if it was recorded before.
        delivery_id: Its delivery, or None if it is still open.
        step: Used by `broadcast`.
    """

    event_id: UUID | None
    delivery_id: UUID | None
    step: Step | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RecordedDelivery:
    """The delivery of one recipient.

    Attributes:
        delivery_id: Its id.
        linked: How many earlier events were linked to it.
        step: Used by `broadcast`.
    """

    delivery_id: UUID
    linked: int
    step: Step | None = field(default=None, repr=False, compare=False)


Done = TypeVar("Done", Recorded, RecordedDelivery)
T = TypeVar("T")


def broadcast(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Publish what was recorded, and link what overlapping transactions could not see. Call this after your commit.

    A Session does this itself when it commits, unless it joined your transaction. Nothing is published twice, and
    nothing that the database does not have.

    It returns immediately and never raises: a background thread does the work within milliseconds, on a connection of
    its own. If it fails, the log has one line, and the next sweep links. `flush` waits for it.

    Args:
        recorded: The result of `record_webhook`, `record_send`, `receive` or `link`.
    """
    with _quietly():
        _enqueue([each.step for each in recorded if each.step])


async def broadcast_async(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Do the same as `broadcast`, in async code.

    Args:
        recorded: The result of `record_webhook`, `record_send`, `receive` or `link`.
    """
    broadcast(recorded)


def _enqueue(steps: Iterable[Step]) -> None:
    lazy_redis.load()
    if dropped := _queue.put_all(step for step in steps if step.events or step.recheck):
        _count_failed(dropped)
        if _throttle.allow(NOT_BROADCAST):
            logger.warning("%s: too many calls wait for the background thread", NOT_BROADCAST)


def _count_failed(steps: Iterable[Step]) -> None:
    if failed := 2 * sum(len(step.events) for step in steps):
        telemetry.count_messages({"failed": failed})


@contextmanager
def _quietly() -> Iterator[None]:
    """Log what the block raises: the caller has committed."""
    try:
        yield
    except Exception as error:  # a driver, an application's engine or its listeners may raise anything
        logger.warning("%s: %s", NOT_BROADCAST, _reason(error))


def _reason(error: Exception) -> str:
    """Return in a few words what went wrong; another's message may hold an address."""
    return failures.reason(translate(error) if isinstance(error, DBAPIError) else error)


def _take(steps: Sequence[Step]) -> list[Step]:
    """Take steps in the background thread, and return those to be taken again in a moment."""
    by_pool: dict[Pool, list[Step]] = defaultdict(list)
    for step in steps:
        by_pool[(step.engine or runtime.get_engine()).pool].append(step)
    again = []
    for group in by_pool.values():
        engine = group[0].engine or runtime.get_engine()
        if not _connections.is_resting(engine):
            with _quietly():
                again += _connections.run(engine, partial(_take_with, group))
                continue
        _count_failed(group)
    return again


def _take_with(steps: Sequence[Step], connected: Connected) -> list[Step]:
    """Take steps on a connection, which then have nothing left, except for events that are not there."""
    rechecks = [step.recheck for step in steps if step.recheck]
    with connected.plain() as tx:
        present, may_match = open_orphans.after_commit(
            tx,
            [_id(event) for step in steps for event in step.events],
            [id_ for recheck in rechecks for id_ in recheck.message_ids],
            [id_ for recheck in rechecks for id_ in recheck.event_ids],
        )
    events = []
    for step in steps:
        events += [event for event in step.events if _id(event) in present]
        step.events = tuple(event for event in step.events if _id(event) not in present)
    _publish(events)
    by_tenant: dict[str, list[Step]] = defaultdict(list)
    for step in steps if may_match else ():
        if step.recheck:
            by_tenant[step.recheck.tenant_id].append(step)
    again = [step for group in by_tenant.values() for step in _relink(connected, group)]
    for step in steps:
        if step not in again:
            step.recheck = None
    return again


def _id(event: LinkedEvent) -> str:
    return event.reconciled_id or event.event_id


def _publish(events: Iterable[LinkedEvent]) -> None:
    if messages := [projector.make_message(event) for event in events]:
        Publisher(runtime.get_redis()).publish(messages)


def _relink(connected: Connected, steps: list[Step]) -> list[Step]:
    """Link what is open for a tenant's steps; return them if some of it is held by another session, or is left over."""
    rechecks = [step.recheck for step in steps if step.recheck]
    message_ids = dict.fromkeys(id_ for recheck in rechecks for id_ in recheck.message_ids)
    event_ids = dict.fromkeys(id_ for recheck in rechecks for id_ in recheck.event_ids)
    try:
        with connected.writing(STATEMENT_TIMEOUT_MS) as tx:
            pairs, notes, has_more = _match(tx, Recheck(rechecks[0].tenant_id, tuple(message_ids), tuple(event_ids)))
            linked = [event for event in ledger.link(tx, pairs, notes) if event.reconciled_id] if pairs else []
    except DBAPIError as error:
        if not is_data_error(error):
            raise
        if len(steps) > 1:  # one orphan that the database refuses does not hold up those of other calls
            middle = len(steps) // 2
            return [*_relink(connected, steps[:middle]), *_relink(connected, steps[middle:])]
        text = "cannot look once more for events of this call, which the next sweep links: %s"
        logger.warning(text, _reason(error))
        return []
    _publish(linked)
    if has_more and linked:
        return steps
    for step in steps:
        step.attempts += 1
    return steps if len(linked) < len(pairs) and steps[0].attempts < ATTEMPTS else []


def _match(tx: Transaction, recheck: Recheck) -> tuple[Pairs, Notes, bool]:
    """Return what is open for a recheck and matches, at most a batch, its notes, and whether there may be more."""
    size = tx.settings.batch_size
    found = open_orphans.with_message_ids(tx, recheck.tenant_id, recheck.message_ids) if recheck.message_ids else []
    ids = dict.fromkeys([*found, *recheck.event_ids])
    orphans = [orphan for orphan in open_orphans.read(tx, ids) if orphan.keys.is_current and not orphan.refused]
    matches = match_orphans(tx, orphans)
    pairs = [(match.orphan.event_id, match.result.delivery_id) for match in matches if match.result.delivery_id]
    return pairs[:size], unchecked_notes(matches), len(found) >= size or len(pairs) > size


class _Connections:
    """The background thread's own connections, one for each pool of an application's engine.

    Those of an async engine run in an event loop of the thread's own.
    """

    def __init__(self) -> None:
        self._open: dict[Pool, sa.Connection] = {}
        self._rests: dict[Pool, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parents: list[object] = []

    def is_resting(self, engine: sa.Engine) -> bool:
        """Whether the engine's database could not be reached a moment ago."""
        return time.monotonic() < self._rests.get(engine.pool, 0)

    def run(self, engine: sa.Engine, act: Callable[[Connected], list[Step]]) -> list[Step]:
        """Return what *act* returns on a connection, which is opened if there is none; a lost one is replaced once."""
        return self._in_loop(engine, partial(self._run, engine, act))

    def _run(self, engine: sa.Engine, act: Callable[[Connected], list[Step]]) -> list[Step]:
        settings = runtime.get_settings()
        was_open = engine.pool in self._open
        try:
            return act(Connected(self._connect(engine), settings))
        except DBAPIError as error:
            self._close(engine.pool)
            if not (was_open and is_transient(error)):
                raise
        except BaseException:
            self._close(engine.pool)
            raise
        return act(Connected(self._connect(engine), settings))

    def _connect(self, engine: sa.Engine) -> sa.Connection:
        if engine.pool not in self._open:
            try:
                self._open[engine.pool] = engines.connect(engines.separate_engine(engine))
            except BaseException:
                self._rests[engine.pool] = time.monotonic() + REST_SECONDS
                raise
        return self._open[engine.pool]

    def _in_loop(self, engine: sa.Engine, act: Callable[[], T]) -> T:
        if not engine.dialect.is_async:
            return act()
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(greenlet_spawn(act))

    def _close(self, pool: Pool) -> None:
        connection = self._open.pop(pool, None)
        if connection is not None:
            with suppress(Exception):  # it may be lost
                connection.close()
            with suppress(Exception):
                connection.engine.dispose()

    def leave_to_parent(self) -> None:
        """Begin without connections in a forked child; those of the parent stay referenced, so that none is closed."""
        self._parents.append((self._open, self._loop))
        self._open, self._loop = {}, None

    def close(self) -> None:
        """Close all connections."""
        for pool, connection in list(self._open.items()):
            with _quietly():
                self._in_loop(connection.engine, partial(self._close, pool))
        self._rests = {pool: until for pool, until in self._rests.items() if until > time.monotonic()}
        if self._loop is not None:
            self._loop.close()
            self._loop = None


_throttle = LogThrottle()
_connections = _Connections()
_queue = Queue(_take, limit=MOST_STEPS, batch=STEPS_AT_ONCE, delay=GATHER_SECONDS, close=_connections.close)
os.register_at_fork(after_in_child=_connections.leave_to_parent)


def returned(given: sa.Connection | Session, recorded: list[Done]) -> list[Done]:
    """Return what a writer did; if a Session was *given*, it takes the step when it commits."""
    session = as_session(given)
    connection: Any = given if session is None else session.connection()
    steps = [each.step for each in recorded if each.step]
    for step in steps:
        step.engine = connection.engine
    if session is not None and steps:
        _after_commit(session, connection, steps)
    return recorded


_KEY = "mailglass_reconcile.pending"


class _Pending(NamedTuple):
    """What a Session's transaction on one connection leaves to do."""

    connection: sa.Connection
    steps: list[Step]


def _after_commit(session: Session, connection: sa.Connection, steps: Sequence[Step]) -> None:
    pending: _Pending | None = session.info.get(_KEY)
    if pending is None or pending.connection is not connection:
        pending = session.info[_KEY] = _Pending(connection, [])
    pending.steps.extend(steps)


# For every session of the process: listening to one after the other costs as much as a statement.
@sa.event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    pending: _Pending | None = session.info.get(_KEY)
    # Still in a transaction: only a savepoint was released, or the transaction is the caller's.
    if pending is not None and not pending.connection.in_transaction():
        del session.info[_KEY]
        with _quietly():
            _enqueue(pending.steps)


@sa.event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_KEY, None)
