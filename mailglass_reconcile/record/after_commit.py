"""The step after the commit: broadcast what a writer attached or linked, and look once more for its ids.

One cheap question to the database, on a connection that already exists, tells which of the recorded events are there,
however the savepoints and the transaction ended that they were written in. Only those are broadcast.

Of a send and a webhook whose transactions overlap, neither sees the other. Whichever commits last sees both when it
looks again, so nothing waits for a lock, or for a sweep. The same question looks; only if it finds something, the
sweep's own reader, rule and claim follow.

The caller has committed: nothing is raised, and a fault is one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, MissingGreenlet
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import Pool, QueuePool
from sqlalchemy.util import await_only, greenlet_spawn

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import DatabaseUnavailableError, translated
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.record import failures
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.callers_transaction import borrowed
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.engines import session_of
from mailglass_reconcile.store.ledger import LinkedEvent
from mailglass_reconcile.sweep.judge import judge, unchecked
from mailglass_reconcile.sweep.link import Notes, Pairs, link_in

logger = logging.getLogger(__name__)

ROUNDS = 10
"""How often a look is repeated while another session holds what it found, or while it links whole batches."""
PAUSE_SECONDS = 0.1
SECONDS = 5.0
"""After this no further transaction of the looks of one call begins."""
POOL_SECONDS = 1.0
"""How long a pool may take until a connection is free."""
POLL_SECONDS = 0.01

NOT_BROADCAST = "cannot broadcast the events of this call; the next sweep links those that arrived at the same time"

Begin = Callable[[], AbstractContextManager[sa.Connection]]
"""Begins a transaction, which is committed at the end of the block, and rolled back if it raises."""


class Place(NamedTuple):
    """Where the step is taken: a connection for its question, and how to begin the transaction that links."""

    connection: sa.Connection
    begin: Begin


PLACE = "mailglass_reconcile.place"
"""An engine's execution option: how to open a `Place`, if the engine's own connections are none."""


class Recheck(NamedTuple):
    """What to look for once more after the commit: open events for message ids, and open events themselves."""

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


def broadcast(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Publish what was recorded, and link what overlapping transactions could not see. Call this after your commit.

    Call it outside the connection's block. A Session does this itself when it commits, unless it joined your
    transaction. Nothing is published twice, and nothing that the database does not have.

    It uses a connection of the same engine, waits at most a second for it, and does not wait for Redis. It never
    raises: if it fails, the log has one line, and the next sweep links.

    Args:
        recorded: The result of `record_webhook`, `record_send`, `receive` or `link`.
    """
    with _quietly(NOT_BROADCAST):
        steps = [each.step for each in recorded if each.step]
        engine = next((step.engine for step in steps if step.engine), None)
        _take(steps, lambda: _place_of(engine or runtime.get_engine()))


async def broadcast_async(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Do the same as `broadcast` in async code, without blocking the event loop.

    Args:
        recorded: The result of `record_webhook`, `record_send`, `receive` or `link`.
    """
    await greenlet_spawn(broadcast, recorded)


def _take(steps: Iterable[Step], open_place: Callable[[], AbstractContextManager[Place]]) -> None:
    """Take what is left of *steps*, which then have nothing left, except for events that are not there."""
    steps = [step for step in steps if step.events or step.recheck]
    if not steps:
        return
    rechecks = [step.recheck for step in steps if step.recheck]
    ids = [_id(event) for step in steps for event in step.events]
    settings = runtime.get_settings()
    with open_place() as place:
        present, may_match = open_orphans.after_commit(
            place.connection,
            settings,
            ids,
            [id_ for recheck in rechecks for id_ in recheck.message_ids],
            [id_ for recheck in rechecks for id_ in recheck.event_ids],
        )
        linked = _look_again(rechecks, place, settings) if may_match else []
    events = []
    for step in steps:
        events += [event for event in step.events if _id(event) in present]
        step.events = tuple(event for event in step.events if _id(event) not in present)
        step.recheck = None
    messages = [projector.message(event) for event in events + linked]
    if messages:
        Publisher(runtime.get_redis()).publish_soon(messages)


def _id(event: LinkedEvent) -> str:
    return event.reconciled_id or event.event_id


@contextmanager
def _quietly(lost: str) -> Iterator[None]:
    """Log what the block raises, as the reason why something is *lost*: the caller has committed."""
    try:
        yield
    except Exception as error:  # a driver, an application's engine or its listeners may raise anything
        logger.warning("%s: %s", lost, _reason(error))


def _reason(error: Exception) -> str:
    """Return in a few words what went wrong; another's message may hold an address."""
    if isinstance(error, MissingGreenlet):
        return "after asynchronous code, write `await broadcast_async(…)`"
    return failures.reason(translated(error) if isinstance(error, DBAPIError) else error)


def _look_again(rechecks: Sequence[Recheck], place: Place, settings: Settings) -> list[LinkedEvent]:
    """Link what is open for *rechecks*, and return the links; what another session holds is tried for a second."""
    linked: list[LinkedEvent] = []
    deadline = time.monotonic() + SECONDS
    with _quietly("cannot look once more for events of this call, which the next sweep links"):
        for recheck in _in_batches(rechecks, settings.batch_size):
            _link(place, settings, recheck, deadline, linked)
    return linked


def _in_batches(rechecks: Sequence[Recheck], size: int) -> Iterator[Recheck]:
    """Yield one for each tenant, or more if it names more than *size* ids."""
    for tenant_id in dict.fromkeys(one.tenant_id for one in rechecks):
        of_tenant = [one for one in rechecks if one.tenant_id == tenant_id]
        message_ids = tuple(dict.fromkeys(id_ for one in of_tenant for id_ in one.message_ids))
        event_ids = tuple(dict.fromkeys(id_ for one in of_tenant for id_ in one.event_ids))
        for start in range(0, max(len(message_ids), len(event_ids)), size):
            yield Recheck(tenant_id, message_ids[start : start + size], event_ids[start : start + size])


# Whatever the application's default is: a stricter one fails beside other transactions (SQLSTATE 40001).
_READ_COMMITTED = sa.text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _link(place: Place, settings: Settings, recheck: Recheck, deadline: float, linked: list[LinkedEvent]) -> None:
    for _ in range(ROUNDS):
        with place.begin() as connection:
            connection.execute(_READ_COMMITTED)
            with borrowed(connection, settings) as tx:
                pairs, notes, more = _matching(tx, recheck)
                done = link_in(tx, pairs, notes)
        linked += done
        held = len(done) < len(pairs)
        if time.monotonic() > deadline or not pairs or not (held or more):
            return
        if held and not _paused(place.connection):
            return


def _paused(connection: sa.Connection) -> bool:
    """Let other transactions finish; False in an event loop that cannot continue meanwhile."""
    if _in_event_loop() and not connection.dialect.is_async:
        return False
    _sleep(PAUSE_SECONDS, is_async=connection.dialect.is_async)
    return True


def _sleep(seconds: float, *, is_async: bool) -> None:
    if is_async:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def _matching(tx: Transaction, recheck: Recheck) -> tuple[Pairs, Notes, bool]:
    """Return what is open for a recheck and matches, with its notes, and whether there may be more."""
    found = open_orphans.with_message_ids(tx, recheck.tenant_id, recheck.message_ids) if recheck.message_ids else []
    ids = dict.fromkeys([*found, *recheck.event_ids])
    orphans = [one for one in open_orphans.read(tx, ids) if one.keys.is_current and not one.refused]
    judged = judge(tx, orphans)
    pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in judged if one.verdict.delivery_id]
    return pairs, unchecked(judged), len(found) >= tx.settings.batch_size


def _place_of(engine: sa.Engine) -> AbstractContextManager[Place]:
    known: Callable[[], AbstractContextManager[Place]] | None = engine.get_execution_options().get(PLACE)
    return known() if known else of_pool(engine)


@contextmanager
def of_pool(engine: sa.Engine) -> Iterator[Place]:
    """Take a connection of an engine's pool, if one is free within a second."""
    _wait_for_free(engine.pool, is_async=engine.dialect.is_async)
    with engine.connect() as connection:
        yield Place(connection, partial(_begin, connection))


def _wait_for_free(pool: Pool, *, is_async: bool) -> None:
    deadline = time.monotonic() + POOL_SECONDS
    while isinstance(pool, QueuePool) and not _has_free(pool):
        if time.monotonic() > deadline:
            raise DatabaseUnavailableError(f"no connection of the engine's pool was free within {POOL_SECONDS:g} s")
        _sleep(POLL_SECONDS, is_async=is_async)


def _has_free(pool: QueuePool) -> bool:
    """Whether a pool has an idle connection, or opens another one: it does not wait for its own timeout then."""
    most: int = pool._max_overflow  # which has no public name
    return pool.checkedin() > 0 or most < 0 or pool.overflow() < most


@contextmanager
def _begin(connection: sa.Connection) -> Iterator[sa.Connection]:
    with connection.begin():
        yield connection


def returned(given: sa.Connection | Session, recorded: list[Done]) -> list[Done]:
    """Return what a writer did; if a Session was *given*, it takes the step when it commits."""
    session = session_of(given)
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
    """Take the step on the Session's own connection, which is not back in its pool yet."""
    pending: _Pending | None = session.info.get(_KEY)
    # Still in a transaction: only a savepoint was released, or the transaction is the caller's.
    if pending is not None and not pending.connection.in_transaction():
        del session.info[_KEY]
        place = Place(pending.connection, partial(_begin, pending.connection))
        with _quietly(NOT_BROADCAST):
            _take(pending.steps, lambda: nullcontext(place))


@sa.event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_KEY, None)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
