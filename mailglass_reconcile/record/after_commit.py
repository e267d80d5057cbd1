"""After the caller's commit: broadcast the linked events, and look up their ids once more.

`broadcast`, a Session that commits, and Django's `on_commit` enqueue; the background thread does the work, on a
connection of its own. It asks the database once for a few thousand waiting ids: which recorded events exist, however
their savepoints and transactions ended, and whether anything may match. Only events that exist are broadcast.

If the transactions of a send and a webhook overlap, neither sees the other. The one that commits last sees both when
its ids are looked up again, so nothing waits for a lock, or for a sweep.

The caller has committed: nothing is raised, and a fault is one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import Pool
from sqlalchemy.util import greenlet_spawn

from mailglass_reconcile import projector, runtime, telemetry
from mailglass_reconcile.errors import is_data_error, is_transient, translate
from mailglass_reconcile.linking.halving import RowFailure, run_halved
from mailglass_reconcile.linking.link import ExtraMetadata, Pairs
from mailglass_reconcile.linking.matcher import match_orphans, unchecked_metadata
from mailglass_reconcile.pubsub import lazy_redis
from mailglass_reconcile.pubsub.background import Queue
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.rules.states import MatchState
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import OpenConnection, Transaction
from mailglass_reconcile.store.engines import as_session
from mailglass_reconcile.store.limits import Limits
from mailglass_reconcile.store.tables import ledger, open_orphans
from mailglass_reconcile.store.tables.ledger import ClaimedEvent

logger = logging.getLogger(__name__)

MAX_WAITING_IDS = 100_000
"""Events to broadcast and ids to look up that wait in memory at most; the actions of further calls are dropped."""
GATHER_SECONDS = 0.02
"""The first call waits this long for others, to share one look-up: calls in a row cost a quarter less."""
ATTEMPTS = 10
"""A look-up is repeated so often, every tenth of a second, while another session has locked its orphans."""
STATEMENT_TIMEOUT_MS = 5_000
BACKOFF_SECONDS = 5.0
"""Seconds without another attempt after a database could not be reached."""

NOT_BROADCAST = "cannot broadcast the events of this call; the next sweep links those that arrived at the same time"


class LookUp(NamedTuple):
    """A look-up to repeat after the commit: of the open events of a message id, or of an open event by its own id."""

    tenant_id: str
    message_id: str | None = None
    event_id: str | None = None


@dataclass(slots=True, eq=False)
class AfterCommitAction:
    """The work to do for one call of a writer after the commit; empty when it is done."""

    events: dict[str, ClaimedEvent]
    """Events to broadcast if the database has them, by the id of the appended event."""
    look_ups: Sequence[LookUp] = ()
    engine: sa.Engine | None = None
    attempts: int = 0
    """Rounds of look-ups that linked nothing, because another session had locked the orphans."""

    @property
    def size(self) -> int:
        """The number of events and look-ups that are left to do."""
        return len(self.events) + len(self.look_ups)


def make_action(events: Iterable[ClaimedEvent], look_ups: Sequence[LookUp] = ()) -> AfterCommitAction | None:
    """Return the action that broadcasts events and repeats look-ups; None if there is nothing to do."""
    action = AfterCommitAction({event.reconciled_id or event.event_id: event for event in events}, look_ups)
    return action if action.size else None


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result for one event.

    Attributes:
        event_id: The id of the event, or None if it was recorded before.
        delivery_id: The delivery of the event, or None while it is open.
        action: Used by `broadcast`.
        state: Why the event is open, such as `unmatched`; None if it is not, or was recorded before.
    """

    event_id: UUID | None
    delivery_id: UUID | None
    action: AfterCommitAction | None = field(default=None, repr=False, compare=False)
    state: MatchState | None = None


@dataclass(frozen=True, slots=True)
class RecordedDelivery:
    """The delivery of one recipient.

    Attributes:
        delivery_id: The id of the delivery.
        linked: The number of earlier events that were linked to it.
        action: Used by `broadcast`.
    """

    delivery_id: UUID
    linked: int
    action: AfterCommitAction | None = field(default=None, repr=False, compare=False)


Result = TypeVar("Result", Recorded, RecordedDelivery)
T = TypeVar("T")


def broadcast(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Publish what was recorded, and link what overlapping transactions could not see. Call this after your commit.

    A Session does this itself when it commits, unless it joined your transaction
    (`docs/record-and-receive.md#call-broadcast-after-your-commit`). It returns immediately and never raises: a
    background thread does the work.

    Args:
        recorded: The result of `record_webhook`, `record_send`, `receive` or `link`.
    """
    with _log_errors():
        _enqueue(_actions_of(recorded))


def _actions_of(recorded: Iterable[Recorded | RecordedDelivery]) -> list[AfterCommitAction]:
    """Return the actions of results, each once."""
    return list(dict.fromkeys(result.action for result in recorded if result.action))


async def broadcast_async(recorded: Iterable[Recorded | RecordedDelivery]) -> None:
    """Do the same as `broadcast`, in async code.

    Args:
        recorded: The result of `record_webhook`, `record_send`, `receive` or `link`.
    """
    broadcast(recorded)


def _enqueue(actions: Iterable[AfterCommitAction]) -> None:
    lazy_redis.load()
    if dropped := _queue.put_all(action for action in actions if action.size):
        _count_failed(dropped)
        if _throttle.allow(NOT_BROADCAST):
            logger.warning("%s: too many calls wait for the background thread", NOT_BROADCAST)


def _count_failed(actions: Iterable[AfterCommitAction]) -> None:
    if failed := 2 * sum(len(action.events) for action in actions):
        telemetry.count_messages({"failed": failed})


@contextmanager
def _log_errors() -> Iterator[None]:
    """Log an error of the block instead of raising it: the caller has committed."""
    try:
        yield
    except Exception as error:  # a driver, an application's engine or its listeners may raise anything
        logger.warning("%s: %s", NOT_BROADCAST, _describe_error(error))


def _describe_error(error: Exception) -> str:
    """Describe an error in a few words, without a foreign message, which may hold an address."""
    return failures.describe_error(translate(error) if isinstance(error, DBAPIError) else error)


def _run_actions(actions: Sequence[AfterCommitAction]) -> list[AfterCommitAction]:
    """Run actions in the background thread, and return those to repeat in a moment."""
    by_pool: dict[Pool, list[AfterCommitAction]] = defaultdict(list)
    for action in actions:
        by_pool[(action.engine or runtime.get_engine()).pool].append(action)
    to_repeat = []
    for group in by_pool.values():
        engine = group[0].engine or runtime.get_engine()
        if not connections.is_backing_off(engine):
            with _log_errors():
                to_repeat += connections.run(engine, partial(_run_on_connection, group))
                continue
        _count_failed(group)
    return to_repeat


class _Asked(NamedTuple):
    """A look-up of an action."""

    action: AfterCommitAction
    look_up: LookUp


def _run_on_connection(actions: Sequence[AfterCommitAction], connected: OpenConnection) -> list[AfterCommitAction]:
    """Run actions on a connection, and return those to repeat; the others keep only events that do not exist.

    More than a batch is worked off in parts, and each is published before the next.
    """
    events = [(action, id_) for action in actions for id_ in action.events]
    asked = [_Asked(action, look_up) for action in actions for look_up in action.look_ups]
    to_repeat: dict[AfterCommitAction, list[LookUp]] = defaultdict(list)
    half = connected.limits.ids_per_batch // 2
    for start in range(0, max(len(events), len(asked)), half):
        part = slice(start, start + half)
        for action, look_up in _run_part(connected, events[part], asked[part]):
            to_repeat[action].append(look_up)
    for action in actions:
        action.attempts += 1
        action.look_ups = to_repeat[action] if action.attempts < ATTEMPTS else ()
    return [action for action in actions if action.look_ups]


def _run_part(
    connected: OpenConnection, events: Iterable[tuple[AfterCommitAction, str]], asked: Sequence[_Asked]
) -> list[_Asked]:
    """Broadcast the events that the database has, look up, and return the look-ups to repeat."""
    with connected.without_settings() as tx:
        present, may_match = open_orphans.after_commit(
            tx,
            [id_ for _, id_ in events],
            [look_up.message_id for _, look_up in asked if look_up.message_id],
            [look_up.event_id for _, look_up in asked if look_up.event_id],
        )
    _publish([action.events.pop(id_) for action, id_ in events if id_ in present])
    by_tenant: dict[str, list[_Asked]] = defaultdict(list)
    for pair in asked if may_match else ():
        by_tenant[pair.look_up.tenant_id].append(pair)
    return [repeated for group in by_tenant.values() for repeated in _relink(connected, group)]


def _publish(events: Iterable[ClaimedEvent]) -> None:
    if messages := [projector.make_message(event) for event in events]:
        runtime.create_publisher().publish(messages)


def _relink(connected: OpenConnection, asked: Sequence[_Asked]) -> list[_Asked]:
    """Link the open orphans of a tenant's look-ups, and return the look-ups to repeat."""
    to_repeat: list[_Asked] = []
    size = connected.settings.batch_size
    for start in range(0, len(asked), size):
        batch = asked[start : start + size]
        for _, result in run_halved(connected, batch, partial(_link_open, connected), is_of_rows=is_data_error):
            if isinstance(result, RowFailure):  # it does not hold up other look-ups
                text = "cannot look up the ids of this call again; the next sweep links its events: %s"
                logger.warning(text, _describe_error(result.error))
            else:
                to_repeat += result
    return to_repeat


def _link_open(connected: OpenConnection, asked: Sequence[_Asked]) -> Sequence[_Asked]:
    """Link the open orphans of look-ups; return the look-ups if orphans were locked, or more are open."""
    message_ids = dict.fromkeys(look_up.message_id for _, look_up in asked if look_up.message_id)
    event_ids = dict.fromkeys(look_up.event_id for _, look_up in asked if look_up.event_id)
    with connected.writing(STATEMENT_TIMEOUT_MS) as tx:
        pairs, extra_metadata, has_more = _match(tx, asked[0].look_up.tenant_id, message_ids, event_ids)
        linked = [event for event in ledger.link(tx, pairs, extra_metadata) if event.reconciled_id] if pairs else []
    _publish(linked)
    for action, _ in asked if linked else ():
        action.attempts = 0
    return asked if len(linked) < len(pairs) or (has_more and linked) else ()


def _match(
    tx: Transaction, tenant_id: str, message_ids: Collection[str], event_ids: Iterable[str]
) -> tuple[Pairs, ExtraMetadata, bool]:
    """Match the open orphans of look-ups: at most a batch of pairs, their metadata, and True if there may be more."""
    size = tx.settings.batch_size
    open_ids = open_orphans.with_message_ids(tx, tenant_id, message_ids) if message_ids else []
    ids = dict.fromkeys([*open_ids, *event_ids])
    matches = match_orphans(tx.reading, open_orphans.read(tx.reading, ids))
    pairs = [(match.orphan.event_id, match.result.delivery_id) for match in matches if match.result.delivery_id]
    return pairs[:size], unchecked_metadata(matches), len(open_ids) >= size or len(pairs) > size


class _Connections:
    """The background thread's own connections, one for each pool of an application's engine.

    The connections of an async engine run in an event loop of the thread's own.
    """

    def __init__(self) -> None:
        self._open: dict[Pool, sa.Connection] = {}
        self._backoff_until: dict[Pool, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parents: list[object] = []

    def is_backing_off(self, engine: sa.Engine) -> bool:
        """True if the engine's database could not be reached a moment ago."""
        return time.monotonic() < self._backoff_until.get(engine.pool, 0)

    def run(self, engine: sa.Engine, action: Callable[[OpenConnection], T]) -> T:
        """Call *action* with a connection, and return its result; a connection that was lost is replaced once."""
        return self._in_loop(engine, partial(self._run, engine, action))

    def _run(self, engine: sa.Engine, action: Callable[[OpenConnection], T]) -> T:
        settings, limits = runtime.get_settings(), runtime.get_limits()
        was_open = engine.pool in self._open
        try:
            return action(OpenConnection(self._connect(engine), settings, limits))
        except DBAPIError as error:
            self._close(engine.pool)
            if not (was_open and is_transient(error)):
                raise
        except BaseException:
            self._close(engine.pool)
            raise
        return action(OpenConnection(self._connect(engine), settings, limits))

    def _connect(self, engine: sa.Engine) -> sa.Connection:
        if engine.pool not in self._open:
            try:
                self._open[engine.pool] = engines.connect(engines.separate_engine(engine))
            except BaseException:
                self._backoff_until[engine.pool] = time.monotonic() + BACKOFF_SECONDS
                raise
        return self._open[engine.pool]

    def _in_loop(self, engine: sa.Engine, action: Callable[[], T]) -> T:
        if not engine.dialect.is_async:
            return action()
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(greenlet_spawn(action))

    def _close(self, pool: Pool) -> None:
        connection = self._open.pop(pool, None)
        if connection is not None:
            with suppress(Exception):  # it may be lost
                connection.close()
            with suppress(Exception):
                connection.engine.dispose()

    def leave_to_parent(self) -> None:
        """Start without connections in a forked child; keep references to the parent's, so that none is closed."""
        self._parents.append((self._open, self._loop))
        self._open, self._loop = {}, None

    def close(self) -> None:
        """Close all connections."""
        for pool, connection in list(self._open.items()):
            with _log_errors():
                self._in_loop(connection.engine, partial(self._close, pool))
        self._backoff_until = {pool: until for pool, until in self._backoff_until.items() if until > time.monotonic()}
        if self._loop is not None:
            self._loop.close()
            self._loop = None


_throttle = LogThrottle()
connections = _Connections()
_queue = Queue(
    _run_actions,
    limit=MAX_WAITING_IDS,
    batch=Limits.ids_per_batch,
    size=attrgetter("size"),
    delay=GATHER_SECONDS,
    close=connections.close,
)
os.register_at_fork(after_in_child=connections.leave_to_parent)


def attach_actions(connection_or_session: sa.Connection | Session, recorded: list[Result]) -> list[Result]:
    """Return a writer's results; a Session runs their actions when it commits."""
    session = as_session(connection_or_session)
    connection: Any = connection_or_session if session is None else session.connection()
    actions = _actions_of(recorded)
    for action in actions:
        action.engine = connection.engine
    if session is not None and actions:
        _add_to_session(session, connection, actions)
    return recorded


_KEY = "mailglass_reconcile.pending"
_sessions: WeakSet[Session] = WeakSet()
"""The Sessions to which we listen."""


class _Pending(NamedTuple):
    """The actions to run when a Session's transaction on one connection has committed."""

    connection: sa.Connection
    actions: list[AfterCommitAction]


def _add_to_session(session: Session, connection: sa.Connection, actions: Sequence[AfterCommitAction]) -> None:
    pending: _Pending | None = session.info.get(_KEY)
    if pending is None or pending.connection is not connection:
        pending = session.info[_KEY] = _Pending(connection, [])
        # Each session costs 16 µs. Listening to the class would concern every session of the process.
        if session not in _sessions:
            _sessions.add(session)
            sa.event.listen(session, "after_commit", _on_commit)
            sa.event.listen(session, "after_transaction_end", _on_transaction_end)
    pending.actions.extend(actions)


def _on_commit(session: Session) -> None:
    pending: _Pending | None = session.info.get(_KEY)
    # Still in a transaction: only a savepoint was released, or the transaction is the caller's.
    if pending is not None and not pending.connection.in_transaction():
        del session.info[_KEY]
        with _log_errors():
            _enqueue(pending.actions)


def _on_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_KEY, None)
