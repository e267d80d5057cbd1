"""Watch a test's database, its sweeps, their log and their messages, for the checker of the invariants.

Triggers of a schema of its own write down every row as it was when it was inserted, and every version of a delivery, so
that the checker knows what was there before, whoever wrote it and with whatever session.
"""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import sqlalchemy as sa

import database_pool
import processes
from mailglass_reconcile.linking.link import Pairs
from mailglass_reconcile.pubsub import Message, Publisher
from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult
from waiting import PATIENCE, settle

_WITNESS = """
CREATE SCHEMA witness;
CREATE TABLE witness.events (id uuid, text text, ours boolean, utc timestamp, local timestamp);
CREATE TABLE witness.deliveries (n bigint GENERATED ALWAYS AS IDENTITY, id uuid, version jsonb, ours boolean);
CREATE TABLE witness.pruned (relation text, id uuid, row jsonb, text text, xact xid8);
CREATE TABLE witness.effects (handler text, event_id uuid);
CREATE FUNCTION witness.event() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  INSERT INTO witness.events
  VALUES (NEW.id, md5(to_jsonb(NEW)::text), right(current_setting('search_path'), 7) = 'pg_temp',
          now() AT TIME ZONE 'UTC', now()::timestamp);
  RETURN NULL;
END $$;
CREATE FUNCTION witness.delivery() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  INSERT INTO witness.deliveries (id, version, ours)
  VALUES (NEW.id, to_jsonb(NEW) - 'metadata', right(current_setting('search_path'), 7) = 'pg_temp');
  RETURN NULL;
END $$;
CREATE FUNCTION witness.pruned() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  IF right(current_setting('search_path'), 7) = 'pg_temp' THEN
    INSERT INTO witness.pruned
    VALUES (TG_TABLE_NAME, OLD.id, to_jsonb(OLD), md5(to_jsonb(OLD)::text), pg_current_xact_id());
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER witness_pruned AFTER DELETE ON mailglass_events FOR EACH ROW EXECUTE FUNCTION witness.pruned();
CREATE TRIGGER witness_pruned AFTER DELETE ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION witness.pruned();
CREATE TRIGGER witness AFTER INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION witness.event();
CREATE TRIGGER witness AFTER INSERT OR UPDATE ON mailglass_deliveries FOR EACH ROW EXECUTE FUNCTION witness.delivery();
ALTER TABLE mailglass_events ENABLE ALWAYS TRIGGER witness;
ALTER TABLE mailglass_deliveries ENABLE ALWAYS TRIGGER witness;
"""

_LISTED = Path(f"/proc/self/task/{os.getpid()}/children")
_CHANNELS = "mailglass:events:*"
_COMMITTED = "SELECT id::text FROM mailglass_events WHERE id = ANY (CAST(:ids AS uuid[]))"


class Witness:
    """The record of one test's database beyond its tables: results of sweeps, messages, the log."""

    def __init__(self, pubsub: redis.client.PubSub, client: redis.Redis) -> None:
        """Record the messages of a confirmed subscriber."""
        self.sweeps: list[Sweep] = []
        self.early: list[str] = []
        """Ids of events that were told of before they had committed."""
        self.log: list[str] = []
        """What the package has logged in this process."""
        self.children = running()
        """Processes that were there before the test."""
        self._pubsub = pubsub
        self._client = client

    def results(self) -> list[tuple[SweepResult, int | None]]:
        """Return each sweep's result and its number of eligible orphans, or None if it did not count them."""
        return [(sweep.result, _count_eligible(sweep) if sweep.window else None) for sweep in self.sweeps]

    def messages(self, *, settled: bool = True) -> list[tuple[str, dict[str, Any]]]:
        """Return `(channel, payload)` of the messages that were published since the last call.

        If *settled*, wait for the background thread's actions first.
        """
        if settled:
            settle()
        mark = uuid.uuid4().hex
        self._client.publish(f"mailglass:events:{mark}", mark)
        received = []
        while True:
            message = self._pubsub.get_message(timeout=PATIENCE)
            assert message is not None, "the sentinel did not arrive"
            if message["data"] == mark.encode():
                return received
            if message["type"] == "pmessage" and message["data"].startswith(b"{"):
                received.append((message["channel"].decode(), json.loads(message["data"])))


def _count_eligible(sweep: Sweep) -> int:
    return sweep.counters.selected + sweep.counters.left_out.total()


def install(engine: sa.Engine) -> None:
    """Make a database, and its copies, record the changes of their rows."""
    with engine.begin() as connection:
        connection.exec_driver_sql(_WITNESS)
    database_pool.install(engine)


@cache
def _client(redis_url: str) -> redis.Redis:
    """Return this process's own: a new one reads the library's metadata for each of its connections."""
    return redis.Redis.from_url(redis_url)


@cache
def _kept_pubsub(redis_url: str) -> redis.client.PubSub:
    """Return this process's own, which keeps its connection from one test to the next."""
    return _client(redis_url).pubsub()


@contextmanager
def _subscribed(redis_url: str) -> Iterator[redis.client.PubSub]:
    """Yield a confirmed subscriber to all channels; nobody is subscribed after the block."""
    pubsub = _kept_pubsub(redis_url)
    try:
        pubsub.psubscribe(_CHANNELS)
        _read_until(pubsub, "psubscribe")
    except redis.ConnectionError:  # a test has killed all connections
        pubsub.reset()
        pubsub.psubscribe(_CHANNELS)
        _read_until(pubsub, "psubscribe")
    try:
        yield pubsub
        pubsub.punsubscribe()
        _read_until(pubsub, "punsubscribe")
    except BaseException:
        pubsub.reset()
        raise


def _read_until(pubsub: redis.client.PubSub, kind: str) -> None:
    while (pubsub.get_message(timeout=PATIENCE) or {})["type"] != kind:
        pass


@contextmanager
def watched(engine: sa.Engine, redis_url: str) -> Iterator[Witness]:
    """Record this process's sweeps and all messages."""
    with _subscribed(redis_url) as pubsub, pytest.MonkeyPatch.context() as patch:
        witness = Witness(pubsub, _client(redis_url))
        batches = Sweep.batches

        def observed(sweep: Sweep, on: AbstractContextManager[OpenConnection] | None = None) -> Iterator[Pairs]:
            witness.sweeps.append(sweep)
            return batches(sweep, on)

        publish = Publisher.publish

        def checked(publisher: Publisher, messages: Sequence[Message]) -> None:
            ids = [json.loads(payload)["meta"]["event_id"] for _, _, payload in messages]
            with engine.begin() as connection:
                committed = set(connection.execute(sa.text(_COMMITTED), {"ids": ids}).scalars())
            witness.early += set(ids) - committed
            publish(publisher, messages)

        patch.setattr(Sweep, "batches", observed)
        patch.setattr(Publisher, "publish", checked)
        with _logged(witness.log):
            yield witness


@contextmanager
def _logged(lines: list[str]) -> Iterator[None]:
    """Record what the package logs while the block runs."""
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("mailglass_reconcile")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def running() -> dict[int, str]:
    """Return the names of this process's running descendants, except servers, by their ids."""
    names: dict[int, str] = {}
    parents = [os.getpid()]
    while parents:
        for pid, name in _children(parents.pop()):
            if not name.startswith(("postgres", "valkey")):
                if pid not in processes.helpers:
                    names[pid] = name
                parents.append(pid)
    return names


def _children(parent: int) -> Iterator[tuple[int, str]]:
    """Yield ids and names of a process's children; on Linux without reading all processes, as psutil does."""
    if not _LISTED.exists():
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(parent).children():
                if child.status() != psutil.STATUS_ZOMBIE:
                    yield child.pid, child.name()
        return
    for task in _list_files(Path(f"/proc/{parent}/task")):
        for pid in map(int, _read(task / "children").split()):
            # "PID (NAME) STATE …", where a name may have parentheses and spaces
            name, _, state = _read(Path(f"/proc/{pid}/stat")).partition("(")[2].rpartition(")")
            if state and state.split()[0] not in "ZX":
                yield pid, name


def _list_files(folder: Path) -> list[Path]:
    """Return the files of a process's folder, or none if the process has ended."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    """Return the text of a process's file, or nothing if the process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
