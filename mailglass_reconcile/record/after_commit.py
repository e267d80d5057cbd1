"""The step after the commit: broadcast what a writer attached or linked, and look once more for its ids.

Of a send and a webhook whose transactions overlap, neither sees the other. Whichever commits last sees both when it
looks again, so nothing waits for a lock, or for a sweep. That look is one cheap question on a connection that already
exists; only if it finds something, the sweep's own reader, rule and claim follow.

With a Session, all this happens by itself. A savepoint that the caller rolls back, with its Session or with its
connection, takes its part of the step with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only

from mailglass_reconcile import projector, runtime
from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError, translated
from mailglass_reconcile.pubsub import Message, Publisher
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import open_orphans
from mailglass_reconcile.store.borrowing import OUR_SAVEPOINT, borrowed
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

Begin = Callable[[], AbstractContextManager[sa.Connection]]
"""Begins a transaction on a connection, which is committed at the end of the block, and rolled back if it raises."""


class Place(NamedTuple):
    """Where a look happens: how to get a connection for its question, and how to begin the transaction that links."""

    ask: Begin
    begin: Begin


def place_of(engine: sa.Engine | None) -> Place:
    """Return an engine's pool, or that of the settings: the question needs no BEGIN and COMMIT, two round trips."""

    @contextmanager
    def ask() -> Iterator[sa.Connection]:
        with (engine or runtime.get_engine()).connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def begin() -> AbstractContextManager[sa.Connection]:
        return (engine or runtime.get_engine()).begin()

    return Place(ask, begin)


class Recheck(NamedTuple):
    """What to look for once more after the commit: open events for message ids, and open events themselves."""

    tenant_id: str
    message_ids: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result for one event.

    Attributes:
        event_id: Its id, or None if it was recorded before.
        delivery_id: Its delivery, or None if it is an orphan.
        messages: What `broadcast` will publish; empty if there is nothing, or if a Session publishes it by itself.
        recheck: What `broadcast` will look for once more; None if there is nothing, or if a Session does it by itself.
        engine: Where it will look.
    """

    event_id: UUID | None
    delivery_id: UUID | None
    messages: tuple[Message, ...] = field(default=(), repr=False)
    recheck: Recheck | None = field(default=None, repr=False)
    engine: sa.Engine | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RecordedDelivery:
    """The delivery of one recipient.

    Attributes:
        delivery_id: Its id.
        linked: How many events that came before it were linked to it now.
        messages: What `broadcast` will publish; empty if there is nothing, or if a Session publishes it by itself.
        recheck: What `broadcast` will look for once more; None if there is nothing, or if a Session does it by itself.
        engine: Where it will look.
    """

    delivery_id: UUID
    linked: int
    messages: tuple[Message, ...] = field(default=(), repr=False)
    recheck: Recheck | None = field(default=None, repr=False)
    engine: sa.Engine | None = field(default=None, repr=False, compare=False)


Done = TypeVar("Done", Recorded, RecordedDelivery)


def broadcast(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Finish what a writer began on a plain Connection: call it after your commit, outside the connection's block.

    It broadcasts what was attached or linked. Then it looks once more for events that overlapping transactions could
    not see, on a connection of the same engine, links them, and broadcasts these links, too.

    It does not wait for Redis, and raises nothing if Redis is down. If the database does not answer, it raises nothing
    either, and the next sweep links. Do not call it with a Session, which does this by itself.

    Args:
        recorded: What `record_webhook` or `record_send` returned.

    Raises:
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
    """
    done = list(recorded)
    engine = next(filter(None, map(attrgetter("engine"), done)), None)
    finish(done, place_of(engine))


def finish(recorded: Sequence[Recorded | RecordedDelivery], place: Place) -> None:
    """Do what `broadcast` does, on connections of *place*.

    Raises:
        ConfigurationError: `MAILGLASS_REDIS_URL` cannot be used.
    """
    messages: list[Message] = []
    rechecks = []
    for each in recorded:
        messages += each.messages
        if each.recheck:
            rechecks.append(each.recheck)
    if rechecks:
        messages += map(projector.message, look_again(rechecks, place))
    if messages:
        Publisher(runtime.get_redis()).publish_soon(messages)


def finish_quietly(recorded: Sequence[Recorded | RecordedDelivery], place: Place) -> None:
    """Do what `finish` does, and log what it raises: for callbacks after a commit, such as Django's `on_commit`."""
    try:
        finish(recorded, place)
    except ConfigurationError as error:
        logger.error("events are recorded, but their broadcasts are lost: %s", error)


def look_again(rechecks: Sequence[Recheck], place: Place) -> list[LinkedEvent]:
    """Link what is open for *rechecks*, and return the links; call it after the commit.

    What another session holds is tried again for a second. A fault of the database costs a line in the log: the next
    sweep links what was not linked.
    """
    linked: list[LinkedEvent] = []
    settings, deadline = runtime.get_settings(), time.monotonic() + SECONDS
    try:
        for recheck in _in_batches(rechecks, settings.batch_size):
            _link(place, settings, recheck, deadline, linked)
    except (MailglassReconcileError, SQLAlchemyError, OSError) as error:
        shown = translated(error) if isinstance(error, DBAPIError) else error
        reason = shown if isinstance(shown, MailglassReconcileError) else type(shown).__name__
        logger.warning("cannot look once more for events of this call, which the next sweep links: %s", reason)
    return linked


def _in_batches(rechecks: Sequence[Recheck], size: int) -> Iterator[Recheck]:
    """Yield one for each tenant, or more if it names more than *size* ids."""
    for tenant_id in dict.fromkeys(one.tenant_id for one in rechecks):
        of_tenant = [one for one in rechecks if one.tenant_id == tenant_id]
        message_ids = tuple(dict.fromkeys(id_ for one in of_tenant for id_ in one.message_ids))
        event_ids = tuple(dict.fromkeys(id_ for one in of_tenant for id_ in one.event_ids))
        for start in range(0, max(len(message_ids), len(event_ids)), size):
            yield Recheck(tenant_id, message_ids[start : start + size], event_ids[start : start + size])


def _link(place: Place, settings: Settings, recheck: Recheck, deadline: float, linked: list[LinkedEvent]) -> None:
    for _ in range(ROUNDS):
        with place.ask() as connection:
            if not open_orphans.may_match(connection, settings, recheck.message_ids, recheck.event_ids):
                return
        with place.begin() as connection, borrowed(connection, settings) as tx:
            pairs, notes, more = _matching(tx, recheck)
            done = link_in(tx, pairs, notes=notes)
        linked += done
        held = len(done) < len(pairs)
        if time.monotonic() > deadline or not pairs or not (held or more):
            return
        if held and not _paused(connection):
            return


def _paused(connection: sa.Connection) -> bool:
    """Let other transactions finish; False in an event loop that cannot continue meanwhile."""
    if connection.dialect.is_async:
        await_only(asyncio.sleep(PAUSE_SECONDS))
    elif _in_event_loop():
        return False
    else:
        time.sleep(PAUSE_SECONDS)
    return True


def _matching(tx: Transaction, recheck: Recheck) -> tuple[Pairs, Notes, bool]:
    """Return what is open for a recheck and matches, with its notes, and whether there may be more."""
    found = open_orphans.with_message_ids(tx, recheck.tenant_id, recheck.message_ids) if recheck.message_ids else []
    ids = dict.fromkeys([*found, *recheck.event_ids])
    orphans = [one for one in open_orphans.read(tx, ids) if one.keys.is_current and not one.refused]
    judged = judge(tx, orphans)
    pairs = [(one.orphan.event_id, one.verdict.delivery_id) for one in judged if one.verdict.delivery_id]
    return pairs, unchecked(judged), len(found) >= tx.settings.batch_size


_KEY = "mailglass_reconcile.pending"


def returned(given: object, recorded: list[Done]) -> list[Done]:
    """Return what a writer did; if a Session was *given*, its step after the commit is left to that, and taken out."""
    if isinstance(given, sa.Connection):
        return _with_engine(given.engine, recorded)
    session = session_of(given)
    if session is not None:
        _after_commit(session, [each for each in recorded if each.messages or each.recheck])
    return [replace(each, messages=(), recheck=None) for each in recorded]


def _with_engine(engine: sa.Engine, recorded: list[Done]) -> list[Done]:
    return [replace(each, engine=engine) if each.recheck else each for each in recorded]


def _after_commit(session: Session, recorded: Sequence[Recorded | RecordedDelivery]) -> None:
    if not recorded:
        return
    connection = session.connection()
    pending: _Pending | None = session.info.get(_KEY)
    if pending is None or pending.connection is not connection:
        pending = session.info[_KEY] = _Pending(connection)
    pending.recorded.extend(recorded)


class _Pending:
    """What one connection's transaction leaves to do, and how much of it there was at each savepoint."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.engine = connection.engine
        self.recorded: list[Recorded | RecordedDelivery] = []
        self.committed = False
        self._marks: dict[str, int] = {}
        sa.event.listen(connection, "before_cursor_execute", self._watch)

    def end(self) -> None:
        """Look at the connection no longer."""
        sa.event.remove(self.connection, "before_cursor_execute", self._watch)

    # By the statement, because the event `savepoint` does not name the savepoint.
    def _watch(self, _connection: sa.Connection, _cursor: object, statement: str, *_others: object) -> None:
        kind, _, name = statement.partition("SAVEPOINT ")
        if name == OUR_SAVEPOINT:
            return
        if kind == "":
            self._marks[name] = len(self.recorded)
        elif kind == "ROLLBACK TO ":
            # A savepoint without a mark is older than the first of them.
            del self.recorded[self._marks.get(name, 0) :]


# For every session of the process: listening to one after the other costs as much as a statement.
@sa.event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    pending = session.info.get(_KEY)
    # Still in a transaction: only a savepoint was released, or the transaction is the caller's.
    if pending is not None and not pending.connection.in_transaction():
        pending.committed = True


# Not in `_committed`: the session's connection is back in its pool only now, and the pool may have no other.
@sa.event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    pending = session.info.pop(_KEY, None) if transaction.parent is None else None
    if pending is None:
        return
    pending.end()
    if pending.committed and pending.recorded:
        finish_quietly(pending.recorded, place_of(pending.engine))


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
