"""`append` and `record_webhook`, in the caller's transaction."""

import datetime as dt
import uuid

import pytest
import sqlalchemy as sa

from mailglass_reconcile import InvalidEventError, WebhookEvent, append, attempt_link, find_orphans, record_webhook
from mailglass_reconcile import reconcile as sweep
from mailglass_reconcile.record.recorder import idempotency_key

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DELIVERY = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
VALUES (CAST(:id AS uuid), 'acme', 'Welcome', 'transactional', :recipient, 'example.com', :message,
        'dispatched', '2026-03-01 11:59', now(), now())
"""


def add_delivery(db, message, recipient="ada@example.com"):
    """Store a delivery as Mailglass leaves it, and return its id."""
    delivery = str(uuid.uuid4())
    db.run(DELIVERY, id=delivery, message=message, recipient=recipient)
    return delivery


def event(message, type_="delivered", **more):
    """A webhook's event about a message."""
    return WebhookEvent(type=type_, occurred_at=NOW, provider_event_id="evt", message_id=message, **more)


def test_a_webhook_whose_delivery_is_there_goes_to_it(db):
    """Stored with its delivery, which is brought up to date in the same transaction."""
    message = str(uuid.uuid4())
    delivery = add_delivery(db, message)
    with db.engine.begin() as connection:
        (recorded,) = record_webhook(connection, tenant_id="acme", provider="postmark", events=[event(message.upper())])
    assert str(recorded.delivery_id) == delivery
    row = db.rows("SELECT last_event_type, terminal, delivered_at, lock_version FROM mailglass_deliveries")[0]
    assert tuple(row) == ("delivered", True, NOW.replace(tzinfo=None), 2)


def test_a_webhook_before_its_delivery_is_an_orphan_that_a_later_sweep_links(db):
    """The race that this package closes."""
    message = str(uuid.uuid4())
    with db.engine.begin() as connection:
        (recorded,) = record_webhook(connection, tenant_id="acme", provider="postmark", events=[event(message)])
    assert recorded.delivery_id is None
    add_delivery(db, message)
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert sweep().linked == 1


def test_a_webhook_that_comes_twice_is_recorded_once(db):
    """The idempotency key is the provider, its event id and the place in the webhook."""
    events = [event("m-1"), event("m-1", "opened")]
    for expected in (2, 0):
        with db.engine.begin() as connection:
            recorded = record_webhook(connection, tenant_id="acme", provider="postmark", events=events)
        assert sum(each.event_id is not None for each in recorded) == expected
    keys = {row[0] for row in db.rows("SELECT idempotency_key FROM mailglass_events")}
    assert keys == {"postmark:evt:0", "postmark:evt:1"}


def test_no_address_goes_into_the_ledger_and_the_open_orphan_forgets_it_when_linked(db):
    """A recipient tells two deliveries of one message apart, and leaves no trace."""
    metadata = {"email": "bob@example.com", "recipient": "bob@example.com", "tag": "welcome"}
    with db.engine.begin() as connection:
        record_webhook(
            connection,
            tenant_id="acme",
            provider="sendgrid",
            events=[event("m-1", recipient="Bob@example.com", metadata=metadata)],
        )
    add_delivery(db, "m-1", "ada@example.com")
    bob = add_delivery(db, "m-1", "bob@example.com")
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert sweep().linked == 1
    assert str(db.value("SELECT delivery_id FROM mailglass_events WHERE type = 'reconciled'")) == bob
    assert db.value("SELECT count(*) FROM mailglass_events AS e WHERE e::text ILIKE '%bob@%'") == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_both_leave_no_setting_behind_in_the_callers_transaction(db):
    """Search path and time zone are the caller's own again."""
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL TimeZone = 'Asia/Kathmandu'; SET LOCAL search_path = public, pg_temp")
        append(connection, tenant_id="acme", type="sent", occurred_at=NOW)
        record_webhook(connection, tenant_id="acme", provider="postmark", events=[event("m-1")])
        settings = connection.execute(sa.text("SELECT current_setting('TimeZone'), current_setting('search_path')"))
        assert tuple(settings.one()) == ("Asia/Kathmandu", "public, pg_temp")


def test_a_rolled_back_transaction_keeps_nothing(db):
    """The writer commits nothing itself."""
    with db.engine.connect() as connection:
        append(connection, tenant_id="acme", type="sent", occurred_at=NOW, needs_reconciliation=True)
        connection.rollback()
    assert db.value("SELECT count(*) FROM mailglass_events") == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_times_are_stored_in_utc(db):
    """Whatever time zone the caller's time is in."""
    local = dt.datetime(2026, 3, 1, 17, 45, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45)))
    with db.engine.begin() as connection:
        append(connection, tenant_id="acme", type="sent", occurred_at=local)
    assert db.value("SELECT occurred_at FROM mailglass_events") == dt.datetime(2026, 3, 1, 12)


@pytest.mark.parametrize("event_id", ["", "\x00\x01", "x" * 401])
def test_an_event_id_that_is_no_key_is_refused(event_id):
    """Before anything is written."""
    with pytest.raises(InvalidEventError):
        idempotency_key("postmark", event_id, 0)


def test_a_time_without_a_zone_is_refused_and_nothing_is_written(db):
    """Also where an earlier event of the same webhook is fine."""
    bad = WebhookEvent(type="opened", occurred_at=NOW.replace(tzinfo=None), provider_event_id="e", message_id="m")
    with db.engine.begin() as connection, pytest.raises(InvalidEventError):
        record_webhook(connection, tenant_id="acme", provider="postmark", events=[event("m"), bad])
    assert db.value("SELECT count(*) FROM mailglass_events") == 0


def test_find_orphans_and_attempt_link_look_and_write_nothing(db):
    """What would be linked, and to what."""
    message = str(uuid.uuid4())
    with db.engine.begin() as connection:
        append(
            connection,
            tenant_id="acme",
            type="delivered",
            occurred_at=NOW,
            metadata={"provider": "postmark", "message_id": message},
            needs_reconciliation=True,
        )
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    with db.engine.begin() as connection:
        (orphan,) = find_orphans(connection)
        assert attempt_link(connection, orphan).state == "unmatched"
    delivery = add_delivery(db, message)
    with db.engine.begin() as connection:
        decision = attempt_link(connection, orphan)
    assert (decision.state, decision.delivery_id) == ("matched", delivery)
    assert db.appended() == 0
