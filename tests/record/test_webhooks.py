"""The idempotency key of a recorded event: which events are the same."""

import datetime as dt
import re

import pytest

import factories
import mailglass_reconcile
from mailglass_reconcile import append
from mailglass_reconcile.record import validation
from mailglass_reconcile.rules import addresses
from recording import LEDGER, NOW, event, record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"tenant_id": "alice"}, {"tenant_id": "bob"}),
        ({"id_": "évent-7"}, {"id_": "vent-7"}),
        ({"provider": "éxample"}, {"provider": "xample"}),
        ({"provider": "a:b", "id_": "c"}, {"provider": "a", "id_": "b:c"}),
        ({"provider": 'a", "b', "id_": "c"}, {"provider": "a", "id_": 'b", "c'}),
        ({"tenant_id": "a:b", "provider": "c"}, {"tenant_id": "a", "provider": "b:c"}),
        ({"id_": "x" * 600}, {"id_": "x" * 601}),
    ],
)
def test_two_events_that_differ_in_anything_are_both_recorded(tx, first, second):
    for changed in (first, second):
        arguments = {"tenant_id": "acme", "provider": "postmark", **changed}
        (recorded,) = record(tx.connection, event(provider_event_id=arguments.pop("id_", "evt")), **arguments)
        assert recorded.event_id is not None
    assert tx.value(LEDGER) == 2


def test_a_key_is_a_digest_and_names_nobody(tx):
    """It does not reveal what it was made of."""
    record(tx.connection, event(provider_event_id="ann@example.com"))
    assert re.fullmatch("webhook:[0-9a-f]{64}", tx.value("SELECT idempotency_key FROM mailglass_events"))


def test_a_time_that_cannot_be_right_counts_as_the_arrival(tx):
    """Otherwise no later report could be a delivery's latest event."""
    factories.delivery(tx, "m-1")
    future = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
    record(tx.connection, event(occurred_at=future))
    sent = mailglass_reconcile.Sent(recipient="bob@example.com", message_id="m-2", occurred_at=future)
    mailglass_reconcile.record_send(tx.connection, provider="postmark", sent=[sent])
    arrivals = "SELECT last_event_at = now() AT TIME ZONE 'UTC' FROM mailglass_deliveries"
    assert tx.rows(arrivals) == [(True,), (True,)]


def test_a_retry_in_another_batch_is_recognised(tx):
    """A provider may send events again with others and in another order."""
    first, second, third = (event(provider_event_id=f"evt-{n}") for n in range(3))
    record(tx.connection, first, second)
    repeated = record(tx.connection, third, second, first)
    assert [recorded.event_id is None for recorded in repeated] == [False, True, True]


def test_events_of_one_call_that_share_an_id_are_told_apart(tx):
    """Postmark's id is that of the webhook; events that share it are numbered, in the same way on a retry.

    Those that are equal in every field are one.
    """
    later = NOW + dt.timedelta(seconds=1)
    events = [event(), event(type_="opened"), event(type_="opened", occurred_at=later), event(type_="opened")]
    record(tx.connection, *events)
    repeated = record(tx.connection, event(provider_event_id="other"), *events)
    assert [recorded.event_id is None for recorded in repeated] == [False, True, True, True, True]
    assert tx.value(LEDGER) == 4


def test_a_provider_has_one_spelling(tx):
    """It is stored trimmed and canonical, and a retry under another spelling is the same event."""
    record(tx.connection, event(), provider=" Amazon SES ")
    (repeated,) = record(tx.connection, event(), provider="amazon_ses")
    assert repeated.event_id is None
    assert tx.rows("SELECT metadata ->> 'provider' FROM mailglass_events") == [("ses",)]
    assert tx.rows("SELECT provider FROM mailglass_open_orphans") == [("ses",)]


def test_an_event_cannot_be_suppressed_by_planting_its_key(tx):
    """Neither another tenant nor `append`, which takes the caller's keys, can use it."""
    delivery = factories.delivery(tx, "m-1")
    append(tx.connection, tenant_id="acme", type="sent", occurred_at=NOW, idempotency_key="postmark:evt:0")
    record(tx.connection, event("m-1"), tenant_id="mallory")
    (recorded,) = record(tx.connection, event("m-1"))
    assert str(recorded.delivery_id) == delivery


def test_the_tenant_is_the_installations_if_none_is_given(db, monkeypatch):
    """It is MAILGLASS_TENANT, `default` if unset."""
    with db.engine.begin() as connection:
        record(connection, event(), tenant_id=None)
    settings = db.settings.model_copy(update={"tenant": "shop"})
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    with db.engine.begin() as connection:
        record(connection, event(), tenant_id=None)
    assert {row[0] for row in db.rows("SELECT tenant_id FROM mailglass_events")} == {"default", "shop"}


@pytest.mark.parametrize(
    "spelled",
    [
        "Ada@Example.com",
        " Ada <ADA@example.com> ",
        '"Ada <x>" <ada@EXAMPLE.com>',
        "x>ada@example.com>",
        "<<ada>>",
        "<a>b>",
    ],
)
def test_an_address_is_stored_as_it_is_compared(spelled):
    """A sweep and a writer take the same address out of any display name, and taking it twice changes nothing."""
    stored = validation.recipient("recipient", spelled)
    assert addresses.normalize_address(stored) == addresses.normalize_address(spelled)
    assert validation.recipient("recipient", stored) == stored
