"""The page on showing the status: its tables, application and queries, run as a reader would."""

import asyncio
import datetime as dt
import uuid
from itertools import count

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

import granting
import pages
from mailglass_reconcile import Sent, WebhookEvent, broadcast, record_send, record_webhook

pytestmark = pytest.mark.version_independent

PAGE = pages.ROOT / "docs" / "order-status.md"
BLOCKS = pages.blocks(PAGE)
SQL = [block.text for block in BLOCKS if block.language == "sql"]
PYTHON = [block.text for block in BLOCKS if block.language == "python" and not block.not_run]
(ORDER_INDEX,) = SQL


def report(db, message_id: str, type_: str, **fields) -> None:
    """Record a webhook of Postmark about a message."""
    event = WebhookEvent(
        type=type_, occurred_at=dt.datetime.now(dt.UTC), provider_event_id=f"{message_id}-{type_}",
        message_id=message_id, **fields,
    )  # fmt: skip
    with db.engine.begin() as connection:
        recorded = record_webhook(connection, provider="postmark", events=[event])
    broadcast(recorded)


@pytest.fixture
def shop(db, monkeypatch):
    """The page's application with two orders; each confirmation gets the next message id."""
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", db.sqlalchemy_url)
    numbers = count(1)

    async def call_postmark(_email):
        return {"MessageID": f"m-{next(numbers)}"}

    names = {"call_postmark": call_postmark, "__name__": PAGE.name}
    for text in PYTHON:
        exec(compile(text, PAGE.name, "exec"), names)  # noqa: S102 - a page of our own
    with db.engine.begin() as connection:
        names["Base"].metadata.create_all(connection)
        connection.execute(sa.text("INSERT INTO orders VALUES (7, 'ada@example.com'), (8, 'bob@example.com')"))
    return names


@pytest.fixture
def client(shop):
    """A client of the application, whose connections are closed in its event loop."""
    with TestClient(shop["app"]) as client:
        yield client
        client.portal.call(shop["engine"].dispose)


def test_an_order_shows_what_the_provider_reported(db, client):
    """There is a word for each event; an unknown order is not found."""
    assert client.get("/orders/7").json() == {"status": "not sent yet", "since": None}
    assert client.post("/orders/7/confirmation").json() == {"order": 7}
    assert client.get("/orders/7").json()["status"] == "sent"
    for type_, status in (
        ("deferred", "delayed"), ("delivered", "delivered"), ("opened", "delivered"),
        ("bounced", "bounced"), ("complained", "marked as spam"),
    ):  # fmt: skip
        report(db, "m-1", type_)
        assert client.get("/orders/7").json()["status"] == status
    assert client.get("/orders/8").json()["status"] == "not sent yet"
    assert client.get("/orders/9").status_code == 404


def test_a_deleted_delivery_leaves_its_order(db, client):
    """Retention deletes deliveries; the order stays and says so."""
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE orders SET delivery_id = gen_random_uuid() WHERE id = 7"))
    assert client.get("/orders/7").json()["status"] == "no longer known"


@pytest.mark.parametrize("early", [True, False], ids=["webhook first", "send first"])
def test_the_reason_of_a_bounce_is_read_in_either_order(db, shop, early):
    """It is read through the `reconciled` event, or from the event itself."""
    steps = [
        lambda: report(db, "m-1", "bounced", reject_reason="bounced", bounce="hard", smtp_status="550 5.1.1"),
        lambda: send(db, "m-1"),
    ]
    for step in steps if early else reversed(steps):
        step()
    with db.engine.connect() as connection:
        delivery_id = connection.scalar(sa.text("SELECT id FROM mailglass_deliveries"))
        rows = connection.execute(shop["reason_of"](delivery_id)).all()
    assert [tuple(row) for row in rows] == [("bounced", "bounced", "hard", "550 5.1.1")]


def send(db, message_id: str) -> None:
    """Record a send to Ada."""
    with db.engine.begin() as connection:
        recorded = record_send(
            connection, provider="postmark", sent=[Sent(recipient="ada@example.com", message_id=message_id)]
        )
    broadcast(recorded)


def test_the_queries_run_as_the_viewer(db, shop):
    documented, role = "mailglass_viewer", f"mgtest_role_{uuid.uuid4().hex[:12]}"
    grants = "".join(granting.STATEMENTS[documented]).replace(documented, role)
    with db.engine.connect() as connection:  # rolled back at its end, with the role
        connection.execute(sa.text(f"CREATE ROLE {role}"))
        connection.exec_driver_sql(grants)
        connection.execute(sa.text(f"SET LOCAL ROLE {role}"))
        assert connection.execute(shop["mails_of"](7)).all() == []
        assert connection.execute(shop["reason_of"](uuid.uuid4())).all() == []


def test_the_query_by_your_id_uses_the_index_that_the_page_adds(db, shop):
    """The id is in the metadata."""
    asyncio.run(remind(shop))
    of_order = shop["mails_of"](7)
    compiled = of_order.compile(db.engine)
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(ORDER_INDEX))
        connection.detach()
        connection.execute(sa.text("SET enable_seqscan = off"))
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.params).scalars())
        rows = connection.execute(of_order).all()
    assert "shop_deliveries_order_idx" in plan
    assert [(row.mailable, row.recipient) for row in rows] == [("Reminder", "ada@example.com")]


async def remind(shop) -> None:
    """Record a reminder with the page's function."""
    await shop["remind"](7, "ada@example.com", "m-9")
    await shop["engine"].dispose()
