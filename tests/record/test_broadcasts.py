"""Broadcasts of attached events: once per channel after the caller's commit, and never after a rollback."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import factories
import mailglass_reconcile
import processes
from recording import event, messages, record
from waiting import wait_until

pytestmark = pytest.mark.python_dependent


def heard(db):
    """Return the message ids of the deliveries that were published since the last call, one per channel."""
    ids = {str(row[0]): row[1] for row in db.rows("SELECT id, provider_message_id FROM mailglass_deliveries")}
    return sorted(ids[payload["delivery_id"]] for _, payload in messages(db))


@pytest.fixture
def deliveries(db):
    """Three deliveries, `m-1` to `m-3`."""
    factories.insert(db, deliveries=[factories.delivery_row(f"m-{n}") for n in (1, 2, 3)])


def test_a_plain_connection_s_caller_broadcasts_after_the_commit(db):
    delivery = factories.delivery(db, "m-1")
    with db.engine.begin() as connection:
        recorded = record(connection, event("m-1", recipient="ada@example.com"), event("m-none", "opened"))
        assert messages(db) == []
    mailglass_reconcile.broadcast(recorded)
    published = messages(db)
    channel = f"mailglass:events:{factories.TENANT}"
    assert [name for name, _ in published] == [channel, f"{channel}:{delivery}"]
    assert [payload for _, payload in published] == 2 * [
        {
            "event": "delivery_updated",
            "delivery_id": delivery,
            "event_type": "delivered",
            "meta": {
                "event_id": str(recorded[0].event_id),
                "type": "delivered",
                "occurred_at": "2026-03-01T12:00:00Z",
                "tenant_id": factories.TENANT,
            },
        }
    ]
    assert "@" not in repr(recorded)


def test_a_redelivered_webhook_is_not_published_again(db, deliveries):
    """Only newly recorded events are published."""
    for expected in (["m-1", "m-1"], []):
        with db.engine.begin() as connection:
            recorded = record(connection, event("m-1"))
        mailglass_reconcile.broadcast(recorded)
        assert heard(db) == expected


def test_a_session_broadcasts_by_itself_when_it_has_committed(db, deliveries):
    """There is one message per commit, even if the caller broadcasts as well."""
    with Session(db.engine) as session:
        recorded = record(session, event("m-1"))
        recorded += record(session, event("m-2", provider_event_id="2"))
        assert heard(db) == []
        session.commit()
        mailglass_reconcile.broadcast(recorded)
        assert heard(db) == ["m-1", "m-1", "m-2", "m-2"]
        record(session, event("m-3", provider_event_id="3"))
        session.commit()
        assert heard(db) == ["m-3", "m-3"]
        session.commit()
    assert heard(db) == []


@pytest.mark.parametrize("end", [Session.rollback, Session.close, Session.invalidate])
def test_a_session_that_does_not_commit_publishes_nothing(db, deliveries, end):
    """This holds however its transaction ends, and whatever it commits later."""
    session = Session(db.engine)
    record(session, event("m-1"))
    end(session)
    record(session, event("m-2"))
    session.commit()
    session.close()
    assert heard(db) == ["m-2", "m-2"]


def test_messages_of_a_savepoint_that_is_rolled_back_are_dropped(db, deliveries):
    """The savepoint may be the Session's or its connection's; messages of a released one wait for the commit."""
    with Session(db.engine) as session:
        with session.begin_nested():
            record(session, event("m-1"))
        assert heard(db) == []
        for begin in (session.begin_nested, session.connection().begin_nested):
            lost = begin()
            with session.begin_nested():
                record(session, event("m-2", provider_event_id="2"))
            lost.rollback()
        record(session, event("m-3", provider_event_id="3"))
        session.commit()
    assert heard(db) == ["m-1", "m-1", "m-3", "m-3"]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}/0?socket_timeout=60", "nonsense://"])
def test_a_redis_that_does_not_answer_costs_a_commit_neither_time_nor_an_error(db, deliveries, url, caplog):
    """The commit has happened; the message is lost and logged."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = mailglass_reconcile.Settings(database_url=db.url, redis_url=url.format(port=port))
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
        with Session(db.engine) as session:
            record(session, event("m-1"))
            session.commit()
            assert url == "nonsense://" or "MAILGLASS_REDIS_URL" not in caplog.text, "it has been waited for"
    wait_until(lambda: "MAILGLASS_REDIS_URL" in caplog.text)
    assert db.value("SELECT count(*) FROM mailglass_events") == 1


RECORDS_AND_ENDS = """
import datetime as dt, sys, sqlalchemy as sa
from sqlalchemy.orm import Session
from mailglass_reconcile import Sent, WebhookEvent, record_send, record_webhook
engine = sa.create_engine(sys.argv[1])
event = WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="1", message_id="m-9")
sent = Sent(recipient="ada@example.com", message_id="m-9")
for record in (
    lambda session: record_webhook(session, provider="postmark", events=[event]),
    lambda session: record_send(session, provider="postmark", sent=[sent]),
):
    with Session(engine) as session:
        record(session)
        session.commit()
"""


@pytest.mark.slow
def test_a_script_that_records_ends_and_its_broadcasts_are_published(db, redis_url):
    """A thread that is stopped while it holds a lock of redis-py would keep the process alive for ever."""
    url = make_url(db.url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    assert processes.run(["-c", RECORDS_AND_ENDS, url], db.environment(redis_url)).returncode == 0
    assert len(db.witness.messages()) == 2


def test_an_async_session_s_event_loop_is_not_blocked(db, deliveries, caplog):
    """The loop runs on while the thread waits for a Redis that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0?socket_timeout=60"
        settings = mailglass_reconcile.Settings(database_url=db.url, redis_url=url)
        mailglass_reconcile.configure(engine=db.engine, settings=settings)

        async def commit():
            engine = create_async_engine(make_url(db.url).set(drivername="postgresql+asyncpg"), poolclass=sa.NullPool)
            async with AsyncSession(engine) as session:
                await session.run_sync(record, event("m-1"))
                await session.commit()
                assert "MAILGLASS_REDIS_URL" not in caplog.text, "it has been waited for"
            await engine.dispose()

        asyncio.run(commit())


def test_an_async_session_leaves_the_loop_s_threads_to_the_application(db, deliveries):
    """Its broadcast is published although every thread of `asyncio.to_thread` is busy."""
    free = threading.Event()

    async def commit():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait, 60)
        engine = create_async_engine(make_url(db.url).set(drivername="postgresql+asyncpg"), poolclass=sa.NullPool)
        async with AsyncSession(engine) as session:
            await session.run_sync(record, event("m-1"))
            await session.commit()
        collected = []
        try:
            wait_until(lambda: collected.extend(heard(db)) or collected == ["m-1", "m-1"])
        finally:
            free.set()
        await busy
        await engine.dispose()

    asyncio.run(commit())
