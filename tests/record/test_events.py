"""`append` and `record_webhook`, in the caller's transaction."""

import datetime as dt
import uuid

import pytest
from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH

import factories
from mailglass_reconcile import Sent, append, attempt_link, configure, find_orphans, record_send, record_webhook
from mailglass_reconcile import reconcile as sweep
from mailglass_reconcile.errors import DatabaseRefusedError, InvalidEventError
from meter import round_trips, statements
from recording import NOW, event, record

DELIVERY = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
VALUES (CAST(:id AS uuid), 'acme', 'Welcome', 'transactional', :recipient, 'example.com', :message,
        'dispatched', '2026-03-01 11:59', now(), now())
"""


def add_delivery(db, message, recipient="ada@example.com"):
    """Store a delivery as Mailglass does, and return its id."""
    delivery = str(uuid.uuid4())
    db.run(DELIVERY, id=delivery, message=message, recipient=recipient)
    return delivery


def test_a_webhook_whose_delivery_is_there_goes_to_it(tx):
    """The event is stored with its delivery, which is updated in the same transaction."""
    message = str(uuid.uuid4())
    delivery = add_delivery(tx, message)
    (recorded,) = record_webhook(tx.connection, tenant_id="acme", provider="postmark", events=[event(message.upper())])
    assert str(recorded.delivery_id) == delivery
    row = tx.rows("SELECT last_event_type, terminal, delivered_at, lock_version FROM mailglass_deliveries")[0]
    assert tuple(row) == ("delivered", True, NOW.replace(tzinfo=None), 2)


def test_a_webhook_before_its_delivery_is_an_orphan_that_a_later_sweep_links(db):
    """This is the race that the package closes."""
    message = str(uuid.uuid4())
    with db.engine.begin() as connection:
        (recorded,) = record_webhook(connection, tenant_id="acme", provider="postmark", events=[event(message)])
    assert recorded.delivery_id is None
    add_delivery(db, message)
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert sweep().linked == 1


def test_a_rolled_back_transaction_keeps_nothing(db):
    """The writer does not commit."""
    with db.engine.connect() as connection:
        append(connection, tenant_id="acme", type="sent", occurred_at=NOW, needs_reconciliation=True)
        connection.rollback()
    assert db.value("SELECT count(*) FROM mailglass_events") == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_times_are_stored_in_utc(tx):
    """The caller's time may have any time zone."""
    local = dt.datetime(2026, 3, 1, 17, 45, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45)))
    append(tx.connection, tenant_id="acme", type="sent", occurred_at=local)
    assert tx.value("SELECT occurred_at FROM mailglass_events") == dt.datetime(2026, 3, 1, 12)


def test_find_orphans_and_attempt_link_look_and_write_nothing(db):
    """They show what would be linked, and to which delivery."""
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
        event_match = attempt_link(connection, orphan)
    assert (event_match.state, event_match.delivery_id) == ("matched", delivery)
    assert db.count_links() == 0


def test_find_orphans_keeps_to_the_maximum_age_that_is_set(db):
    """Like a sweep, they treat an orphan of a minute and a half as expired if the limit is one minute."""
    factories.orphan(db, factories.postmark("m"), age_seconds=90)
    collected = []
    for minutes in (1, 2):
        configure(engine=db.engine, settings=db.settings.model_copy(update={"max_age_minutes": minutes}))
        with db.engine.connect() as connection:
            collected.append(len(find_orphans(connection)))
    assert collected == [0, 1]


@pytest.mark.parametrize("count", [1, 40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_webhook_is_two_round_trips_whatever_its_size(tx, count):
    """One statement looks up deliveries, also of wide ids, and one appends."""
    wide = [factories.delivery_row("wide", recipient=f"u{n}@example.com") for n in range(11)]
    factories.insert(tx, deliveries=[*wide, *(factories.delivery_row(f"m-{n}") for n in range(count))])
    attached = [event(f"m-{n}") for n in range(count)]
    orphans = [event(f"none-{n}", provider_event_id="2") for n in range(count)]
    mixed = [*(event(e.message_id, "opened", provider_event_id="3") for e in (*attached, *orphans)), event("wide")]
    for events in (attached, attached, orphans, orphans, mixed):
        tx.connection.exec_driver_sql("SELECT 1")
        with round_trips(tx.connection.connection.driver_connection) as counts:
            record(tx.connection, *events)
        assert counts[0] <= 2


def test_a_missing_privilege_of_a_writer_is_named_with_its_table(tx):
    role = f"mgtest_role_{uuid.uuid4().hex[:12]}"
    tx.connection.exec_driver_sql(f"CREATE ROLE {role}")  # rolled back
    tx.connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
    with pytest.raises(DatabaseRefusedError, match="on mailglass_"):
        record(tx.connection, event("m-1"))
    tx.connection.exec_driver_sql("RESET ROLE")


def test_no_statement_of_a_call_is_too_long_for_what_psycopg_remembers(tx):
    """Psycopg parses a longer text on each call, which takes as long as sending it."""
    factories.insert(tx, deliveries=[factories.delivery_row("m-1")])
    with statements(tx.connection) as sent:
        record(tx.connection, event("m-1"))
        record_send(
            tx.connection, provider="postmark", tenant_id="acme", sent=[Sent(recipient="a@b.c", message_id="m-2")]
        )
    assert max(map(len, sent)) <= MAX_CACHED_STATEMENT_LENGTH


@pytest.mark.parametrize("provider", ["mailgunn", " Postmrk", "brevoo"])
def test_a_provider_whose_name_is_nearly_a_known_one_is_refused(tx, provider):
    """No event could ever meet its sends."""
    sent = [Sent(recipient="ada@example.com", message_id="m-1")]
    for write in (
        lambda: record(tx.connection, event(), provider=provider),
        lambda: record_send(tx.connection, provider=provider, tenant_id="acme", sent=sent),
    ):
        with pytest.raises(
            InvalidEventError, match=r"^provider: no rule knows \w+; did you mean (mailgun|postmark|brevo)\?"
        ):
            write()


@pytest.mark.parametrize("provider", ["mailgun2", "sparkpost-eu", "sendgrid_2"])
def test_a_second_account_of_a_known_provider_may_have_a_name_of_its_own(tx, provider):
    assert record(tx.connection, event(), provider=provider)


def test_a_provider_whose_name_is_similar_to_a_known_one_is_logged_once(tx, caplog):
    """It may be another one; a provider without a rule and without a similar name is not logged."""
    for provider in ("mailgun-eu", "Mailgun-EU", "pigeon", "mailgun-eu"):
        record(tx.connection, event(provider_event_id=provider), provider=provider)
    messages = [log_record.message for log_record in caplog.records if "no rule knows" in log_record.message]
    assert messages == ["no rule knows mailgun-eu; did you mean mailgun?"]
