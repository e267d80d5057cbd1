"""A send and a webhook whose transactions are open at once: the step after the commit links, without a sweep."""

import asyncio
from collections import Counter

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import factories
from mailglass_reconcile import Sent, broadcast, record_send
from mailglass_reconcile.record.telling import tell_after_commit
from record.recording import NOW, event, record

ADA = "ada@example.com"
OPEN = "SELECT count(*) FROM mailglass_open_orphans"
TYPES = "SELECT last_event_type, count(*) FROM mailglass_deliveries GROUP BY 1"


def send(connection, *sent):
    """Record a send through Postmark of the factories' tenant; by default to one recipient."""
    sent = sent or (Sent(recipient=ADA, message_id="m-1", occurred_at=NOW),)
    return record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)


def receive(connection):
    """Record the webhook of that message."""
    return record(connection, event())


def told(db):
    """Return how many messages of links there were, by their channel's kind; every link is told of once on each."""
    return Counter(channel.count(":") for channel, payload in db.witness.messages() if "reconciled" in str(payload))


ORDERS = pytest.mark.parametrize("order", [(send, receive), (receive, send)], ids=["send first", "webhook first"])
LAST = pytest.mark.parametrize("last", [0, 1], ids=["the first commits last", "the first commits first"])
LINKED = Counter({2: 1, 3: 1})


@ORDERS
@LAST
@pytest.mark.parametrize("tell", [broadcast, tell_after_commit])
def test_of_two_connections_the_later_one_links(db, order, last, tell):
    """Whoever began, whoever commits first: one link, one message, no sweep."""
    with db.engine.connect() as one, db.engine.connect() as other:
        pending = list(zip((one, other), [order[0](one), order[1](other)], strict=True))
        for connection, recorded in pending[:: 1 if last else -1]:
            assert db.appended() == 0
            connection.commit()
            tell(recorded)
    assert (db.value(OPEN), db.appended()) == (0, 1)
    assert db.rows(TYPES) == [("delivered", 1)]
    assert told(db) == LINKED


@ORDERS
@LAST
def test_of_two_sessions_the_later_one_links_by_itself(db, order, last):
    """It needs no call, and `broadcast` has nothing left to do."""
    with Session(db.engine) as one, Session(db.engine) as other:
        recorded = [order[0](one), order[1](other)]
        for session in (one, other)[:: 1 if last else -1]:
            assert db.appended() == 0
            session.commit()
    broadcast(recorded[0] + recorded[1])
    assert (db.value(OPEN), db.appended()) == (0, 1)
    assert told(db) == LINKED


@ORDERS
@LAST
def test_of_two_async_sessions_the_later_one_links_by_itself(db, order, last):
    """In another thread."""

    async def both():
        engine = create_async_engine(make_url(db.url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
        async with AsyncSession(engine) as one, AsyncSession(engine) as other:
            await one.run_sync(order[0])
            await other.run_sync(order[1])
            for session in (one, other)[:: 1 if last else -1]:
                await session.commit()
        await engine.dispose()

    asyncio.run(both())
    assert (db.value(OPEN), db.appended()) == (0, 1)
    assert told(db) == LINKED
