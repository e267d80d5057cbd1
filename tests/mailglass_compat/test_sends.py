"""Sends recorded in tables that Mailglass made, which its own ingest must not find."""

import factories
import mailglass_reconcile
from mailglass_reconcile import Sent, Settings, record_send
from mailglass_reconcile.ops import deliveries as readers
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.store import engines, installed
from mailglass_reconcile.store.database import Database

ADA, BOB = "ada@example.com", "bob@example.com"
BY_PROVIDER = "SELECT count(*) FROM mailglass_deliveries WHERE provider = 'postmark' AND provider_message_id = 'm-1'"
"""How Mailglass's ingest looks for the delivery of an event."""


def send_through_postmark(db, *recipients, message_id="m-1", **more):
    """Record a send through Postmark, and return its deliveries."""
    sent = [Sent(recipient=recipient, message_id=message_id, **more) for recipient in recipients]
    with db.engine.begin() as connection:
        return record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)


def test_mailglass_s_ingest_does_not_find_what_we_have_sent(mailglass_db):
    """It would attach the event itself: no handler would run, nothing be broadcast, and its webhooks would fail."""
    (sent,) = send_through_postmark(mailglass_db, ADA)
    assert mailglass_db.value(BY_PROVIDER) == 0
    orphan = factories.orphan(mailglass_db, factories.postmark("m-1"), type="delivered")
    assert mailglass_reconcile.reconcile().linked == 1
    row = mailglass_db.rows(
        "SELECT delivery_id FROM mailglass_events WHERE idempotency_key = 'reconciled:' || :id", id=orphan
    )
    assert row[0].delivery_id == sent.delivery_id


def test_the_provider_of_the_send_is_shown(mailglass_db):
    """The delivery's timeline and the deliveries of an event's id show it."""
    deliveries = send_through_postmark(mailglass_db, ADA, BOB)
    with mailglass_db.database.reading() as tx:
        (delivery,) = readers.load_deliveries(tx, [str(deliveries[0].delivery_id)])
    assert delivery.provider == "postmark"
    orphan = factories.orphan(mailglass_db, factories.postmark("m-1"), type="opened")
    deliveries_of_id = explain(mailglass_db.database, orphan).candidates
    assert [(row.provider, row.same_provider) for row in deliveries_of_id] == [("postmark", True)] * 2


def test_without_mailglass_a_delivery_has_its_provider(db):
    """Nothing else attaches events there."""
    send_through_postmark(db, ADA)
    assert db.value(BY_PROVIDER) == 1


def test_one_query_answers_who_made_the_tables(mailglass_db):
    """Guard, prune, erasure, retention, removal and sends use it."""
    with mailglass_db.database.reading() as tx:
        assert installed.is_made_by_mailglass(tx)


def test_tables_that_migrate_made_are_ours(db):
    """This holds until Mailglass has tables there."""
    with db.database.reading() as tx:
        assert not installed.is_made_by_mailglass(tx)


def test_missing_tables_were_not_made_by_mailglass(empty_database_url):
    """`migrate` will make them."""
    settings = Settings(database_url=empty_database_url)
    with Database(engines.create_engine(settings), settings).reading() as tx:
        assert not installed.is_made_by_mailglass(tx)
