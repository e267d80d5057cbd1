"""A process that does the measured work: it reads an action as a line of JSON, and prints its result as another.

It calls what any version of the package has, so that an older commit can be measured by this program.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.orm import Session

import mailglass_reconcile
from bench import hand_written
from mailglass_reconcile import Sent, Settings, WebhookEvent, record_send, record_webhook

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TENANT = "acme"

Call = Callable[[Session, Sequence[str]], None]
"""Makes one call about message ids, each with one recipient."""


def send(session: Session, ids: Sequence[str]) -> None:
    """Record one send to a recipient for each id."""
    sent = [Sent(recipient=f"{id_}@example.com", message_id=id_, occurred_at=AT) for id_ in ids]
    record_send(session, tenant_id=TENANT, provider="postmark", sent=sent, mailable="Mail")


def webhook(session: Session, ids: Sequence[str], type_: str = "delivered") -> None:
    """Record one webhook with an event for each id."""
    events = [
        WebhookEvent(
            type=type_,
            occurred_at=AT,
            provider_event_id=f"{type_}-{id_}",
            message_id=id_,
            recipient=f"{id_}@example.com",
        )
        for id_ in ids
    ]
    record_webhook(session, tenant_id=TENANT, provider="postmark", events=events)


def send_by_hand(session: Session, ids: Sequence[str]) -> None:
    """Do the same with SQL."""
    hand_written.send(session, TENANT, ids, [f"{id_}@example.com" for id_ in ids], AT)


def insert_send(session: Session, ids: Sequence[str]) -> None:
    """Insert deliveries, and leave the race open."""
    hand_written.insert_send(session, TENANT, ids, [f"{id_}@example.com" for id_ in ids], AT)


def webhook_by_hand(session: Session, ids: Sequence[str]) -> None:
    """Do the same with SQL."""
    if len(ids) == 1:
        hand_written.webhook(session, TENANT, ids[0], ids[0], AT)
    else:
        hand_written.webhooks(session, TENANT, ids, "event", AT)


def insert_webhook(session: Session, ids: Sequence[str]) -> None:
    """Insert an event and update its delivery, and leave the race open."""
    hand_written.insert_webhook(session, TENANT, ids[0], ids[0], AT)


CALLS: dict[str, Call] = {
    "send": send,
    "webhook": webhook,
    "opening": functools.partial(webhook, type_="opened"),
    "send by hand": send_by_hand,
    "webhook by hand": webhook_by_hand,
    "send by bare INSERT": insert_send,
    "webhook by bare INSERT": insert_webhook,
}


@functools.cache
def application_engine(url: str) -> sa.Engine:
    """Return an engine as an application has it, with one connection."""
    return sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0)


def call(url: str, name: str, batches: Sequence[Sequence[str]]) -> dict[str, float]:
    """Make a call with a Session and a commit for each batch of ids, and return the milliseconds of one."""
    configure(url)
    run, began, cpu = CALLS[name], time.perf_counter(), time.process_time()
    for ids in batches:
        with Session(application_engine(url)) as session:
            run(session, ids)
            session.commit()
    return {
        "wall": 1000 * (time.perf_counter() - began) / len(batches),
        # With the thread that acts after a commit.
        "Python": 1000 * (time.process_time() - cpu) / len(batches),
    }


@functools.cache
def configure(url: str) -> None:
    """Use the package with this database."""
    mailglass_reconcile.configure(settings=Settings(database_url=SecretStr(url)))


def release(url: str) -> dict[str, Any]:
    """Close the connections to a database, so that it can be copied or dropped."""
    mailglass_reconcile.flush()
    application_engine(url).dispose()
    application_engine.cache_clear()
    configure.cache_clear()
    mailglass_reconcile.configure()
    return {}


def sweep(url: str, after: str | None = None, until: str | None = None, keep: bool = False) -> dict[str, Any]:
    """Sweep once, or a range of arrivals as a fan-out's worker does, and return its counts and times.

    The connection is kept for the next sweep if *keep* is true.
    """
    configure(url)
    began_at, cpu = time.time(), time.process_time()
    if after or until:
        from mailglass_reconcile import celery, tasks  # noqa: F401, PLC0415 - only ranges need Celery

        counts = tasks.reconcile.apply(kwargs={"after": after, "until": until}).get()
    else:
        counts = mailglass_reconcile.reconcile().as_dict()
    times = {"began": began_at, "ended": time.time(), "cpu": time.process_time() - cpu}
    if not keep:
        release(url)
    return {**counts, **times, "seconds": times["ended"] - began_at}


def prune(url: str) -> dict[str, Any]:
    """Prune by the retentions of the environment."""
    configure(url)
    began = time.monotonic()
    counts = mailglass_reconcile.prune().as_dict()
    release(url)
    return {**counts, "seconds": time.monotonic() - began}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"call": call, "release": release, "sweep": sweep, "prune": prune}


def main() -> None:
    """Serve the parent until it closes the pipe."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(ACTIONS[request.pop("action")](**request), default=str), flush=True)


if __name__ == "__main__":
    main()
