"""`record_send`: deliveries of an application, linked at once to earlier events."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
from mailglass_reconcile import ConfigurationError, InvalidEventError, Sent, append, reconcile, record_send
from mailglass_reconcile.record.sends import validate_sends
from mailglass_reconcile.rules.addresses import strip_display_name
from meter import round_trips
from recording import LEDGER, NOW, WAITING, event, record, record_together
from waiting import PATIENCE, wait_until

DELIVERIES = "SELECT recipient, provider, provider_message_id FROM mailglass_deliveries ORDER BY recipient"
OPEN = "SELECT count(*) FROM mailglass_open_orphans"
STATE = """
SELECT tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id, last_event_type,
       last_event_at, terminal, dispatched_at, delivered_at, metadata FROM mailglass_deliveries
"""
ADA, BOB = "Ada@Example.com", "bob@example.org"


def make_sent(recipient=ADA, message_id="m-1", **more):
    """Return a `Sent` whose recipient the provider's API accepted."""
    return Sent(recipient=recipient, message_id=message_id, **{"occurred_at": NOW, **more})


def send(connection, *sent, **more):
    """Record a send of the factories' tenant through Postmark."""
    return record_send(connection, **{"tenant_id": factories.TENANT, "provider": "postmark", "sent": sent, **more})


def send_in_transaction(db, *sent, **more):
    """Record a send in a transaction of its own."""
    with db.begin() as connection:
        return send(connection, *sent, **more)


def webhook_in(db, *events, **more):
    """Record a webhook in a transaction of its own."""
    with db.begin() as connection:
        return record(connection, *events, **more)


def test_a_send_is_a_delivery_and_its_dispatched_event(tx):
    """The delivery has every column; the ledger has no address."""
    (recorded,) = send_in_transaction(
        tx, make_sent("Ada <Ada@Example.com>"), mailable="Welcome", stream="bulk", metadata={"user": 7}
    )
    at = NOW.replace(tzinfo=None)
    assert tuple(tx.rows(STATE)[0]) == (
        *(factories.TENANT, "Welcome", "bulk", ADA, "example.com", "postmark", "m-1"),
        *("dispatched", at, False, at, None, {"user": 7}),
    )
    assert recorded.linked == 0
    (row,) = tx.rows("SELECT delivery_id, type, occurred_at, needs_reconciliation, metadata FROM mailglass_events")
    expected = {"provider": "postmark", "message_id": "m-1"}
    assert tuple(row) == (recorded.delivery_id, "dispatched", at, False, expected)


@pytest.mark.parametrize("recipients", [[ADA], [ADA, BOB]])
@pytest.mark.parametrize("has_recipient", [True, False])
@pytest.mark.parametrize("provider", ["postmark", "sparkpost", "Amazon SES", "acme-mail"])
def test_the_order_of_arrival_does_not_matter(db, provider, has_recipient, recipients):
    """The deliveries are the same if the webhook or the send comes first, without any sweep."""
    states = []
    for id_ in ("first", "second"):
        opened = event(id_, "opened", provider_event_id=id_, recipient=ADA if has_recipient else None)
        if id_ == "first":
            webhook_in(db, opened, provider=provider)
        send_in_transaction(db, *(make_sent(recipient, id_) for recipient in recipients), provider=provider)
        if id_ == "second":
            webhook_in(db, opened, provider=provider)
        states.append(db.rows(f"{STATE} WHERE provider_message_id = :id ORDER BY recipient", id=id_))
    before, after = ([tuple(row) for row in rows] for rows in states)
    assert before == [tuple("first" if value == "second" else value for value in row) for row in after]
    linked = has_recipient or len(recipients) == 1
    assert ("opened" in before[0]) is linked
    assert db.value(OPEN) == (0 if linked else 2)


@pytest.mark.parametrize("webhook_first", [True, False])
@pytest.mark.parametrize("sent", ["<7@eu-west-1.amazonses.com>", "7@eu-west-1.amazonses.com"])
@pytest.mark.parametrize("provider", ["ses", "postal", "acme-mail"])
def test_a_send_over_smtp_is_found_by_the_id_that_smtp_gave_it(tx, provider, sent, webhook_first):
    """The order does not matter, nor do angle brackets; the event's own id matches nothing."""
    delivered = event("7", recipient=ADA, smtp_message_id="<7@eu-west-1.amazonses.com>")
    if webhook_first:
        webhook_in(tx, delivered, provider=provider)
    send_in_transaction(tx, make_sent(message_id=sent), provider=provider)
    if not webhook_first:
        webhook_in(tx, delivered, provider=provider)
    assert tx.value("SELECT last_event_type FROM mailglass_deliveries") == "delivered"
    assert tx.value(OPEN) == 0


def test_the_id_over_smtp_decides_only_if_no_other_id_names_a_delivery(tx):
    """The first candidate with a delivery decides, as always."""
    send_in_transaction(tx, make_sent(message_id="7"), provider="postal")
    send_in_transaction(tx, make_sent(message_id="<a@b.example>"), provider="postal")
    (recorded,) = webhook_in(tx, event("7", recipient=ADA, smtp_message_id="<a@b.example>"), provider="postal")
    value = tx.value("SELECT provider_message_id FROM mailglass_deliveries WHERE id = :id", id=recorded.delivery_id)
    assert value == "7"


def test_all_that_is_open_is_linked_whatever_its_grace(db):
    """Each message id matches in all its spellings; an event without a delivery stays open."""
    message = str(uuid.uuid4())
    kinds = ("delivered", "opened", "clicked")
    webhook_in(db, *(event(message.upper(), kind, provider_event_id=kind) for kind in kinds), event("m-none"))
    recorded = send_in_transaction(db, make_sent(message_id=message), make_sent(BOB, "m-2"))
    assert [result.linked for result in recorded] == [3, 0]
    assert db.value(OPEN) == 1
    assert db.count_links() == 3
    (row,) = db.rows("SELECT last_event_type, terminal FROM mailglass_deliveries WHERE provider_message_id <> 'm-2'")
    assert tuple(row) == ("clicked", True)


def test_a_rolled_back_send_leaves_nothing_and_orphans_stay_open(db):
    """There is neither a delivery nor an event, and the next send links the orphans."""
    webhook_in(db, event())
    with db.engine.connect() as connection:
        assert send(connection, make_sent())[0].linked == 1
        connection.rollback()
    assert db.rows(DELIVERIES) == []
    assert (db.value(LEDGER), db.value(OPEN)) == (1, 1)
    assert send_in_transaction(db, make_sent())[0].linked == 1


def test_the_same_send_is_recorded_once(tx):
    """Case, display name and the provider's spelling do not matter, in one call or in several."""
    first, repeated = send_in_transaction(
        tx, make_sent("ada@example.com", occurred_at=None), make_sent("Ada L. <ADA@example.com>"), provider="ses"
    )
    assert first.delivery_id == repeated.delivery_id
    later = send_in_transaction(
        tx, make_sent("<aDa@example.com>", " m-1 "), make_sent(BOB, "m-2"), provider="Amazon SES"
    )
    assert later[0].delivery_id == first.delivery_id
    assert later[1].delivery_id != first.delivery_id
    assert tx.rows(DELIVERIES) == [("ada@example.com", "ses", "m-1"), (BOB, "ses", "m-2")]
    assert tx.value(LEDGER) == 2


def test_a_hundred_duplicates_in_one_call_are_one_delivery(tx):
    """They differ in case and display name; the event is linked and published once."""
    webhook_in(tx, event(recipient=ADA))
    spelled = [f"Ada {n} <{ADA.upper() if n % 2 else ADA}>" for n in range(100)]
    recorded = send_in_transaction(tx, *(make_sent(spelling) for spelling in spelled))
    assert {(result.delivery_id, result.linked) for result in recorded} == {(recorded[0].delivery_id, 1)}
    assert sum(len(action.events) for action in {result.action for result in recorded}) == 1
    assert (tx.value(LEDGER), len(tx.rows(DELIVERIES)), tx.value(OPEN)) == (3, 1, 0)


def test_the_same_send_of_another_tenant_is_another_send(tx):
    """Message ids are unique per provider only, and each tenant may have its own account."""
    (own,), (foreign,) = (send(tx.connection, make_sent(), tenant_id=tenant) for tenant in ("acme", "other"))
    assert own.delivery_id != foreign.delivery_id
    assert set(tx.rows("SELECT tenant_id FROM mailglass_deliveries")) == {("acme",), ("other",)}


def test_a_send_that_comes_again_links_what_came_in_between(db):
    """The event's transaction overlapped with the send's."""
    with db.engine.connect() as sending, db.engine.connect() as receiving:
        (first,) = send(sending, make_sent())
        record(receiving, event())
        sending.commit()
        receiving.commit()
    (repeated,) = send_in_transaction(db, make_sent())
    assert (repeated.delivery_id, repeated.linked) == (first.delivery_id, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"tenant_id": "other"},
        {"provider": "sendgrid"},
        {"sent": [make_sent(BOB)]},
        {"sent": [make_sent(message_id="M-1")]},
    ],
)
def test_two_sends_that_differ_in_anything_are_two(tx, changed):
    (first,) = send_in_transaction(tx, make_sent())
    (second,) = send_in_transaction(tx, **{"sent": [make_sent()], **changed})
    assert first.delivery_id != second.delivery_id
    assert tx.value(LEDGER) == 2


def test_recipients_of_one_id_are_told_apart_by_their_address(tx):
    """They have no provider, because a unique index of Mailglass allows one row per provider and id."""
    webhook_in(tx, event(recipient=BOB), event(type_="opened", provider_event_id="2"))
    recorded = send_in_transaction(tx, make_sent(), make_sent(BOB), make_sent("eve@example.com", "m-2"))
    assert [result.linked for result in recorded] == [0, 1, 0]
    assert [row.provider for row in tx.rows(DELIVERIES)] == [None, None, "postmark"]
    assert tx.value(OPEN) == 1  # without a recipient the event is ambiguous


@pytest.mark.parametrize(
    "planted",
    [
        {"provider": "postmark"},
        {"provider": "Postmark"},
        {"provider": None},
        {"provider": "postmark", "tenant_id": "mallory"},
        {"provider": None, "tenant_id": "mallory"},
    ],
)
def test_an_id_that_another_delivery_has_is_stored_without_a_provider(tx, planted):
    """The other delivery may be another tenant's, which does not affect ours."""
    factories.delivery(tx, "m-1", recipient="other@example.com", **planted)
    webhook_in(tx, event(recipient=ADA), event(recipient=ADA, provider_event_id="m"), tenant_id="mallory")
    webhook_in(tx, event(recipient=ADA))
    (recorded,) = send_in_transaction(tx, make_sent())
    assert recorded.linked == 1
    (row,) = tx.rows("SELECT provider, last_event_type FROM mailglass_deliveries WHERE recipient = :ada", ada=ADA)
    assert tuple(row) == (None, "delivered")
    (row,) = tx.rows("SELECT last_event_type FROM mailglass_deliveries WHERE recipient <> :ada", ada=ADA)
    assert row.last_event_type == "dispatched"
    assert tx.value(OPEN) == 2


@pytest.mark.parametrize("type_", ["failed", "rejected"])
def test_a_send_that_the_provider_refused_is_a_terminal_delivery(tx, type_):
    """Each send without a message id is a delivery of its own."""
    recorded = send_in_transaction(tx, make_sent(message_id=None, type=type_), make_sent(message_id=None, type=type_))
    assert len({result.delivery_id for result in recorded}) == 2
    for row in tx.rows("SELECT last_event_type, terminal, dispatched_at, provider FROM mailglass_deliveries"):
        assert tuple(row) == (type_, True, None, "postmark")
    assert tx.value(LEDGER) == 2


@pytest.mark.parametrize(
    "recipient",
    [
        '"Ada, Countess <of> Lovelace" <ada@example.com>',
        '"ada, at home"@example.com',
        "bücher+ada@bücher.example",
        "postmaster",
        f"{'x' * 988}@example.com",
    ],
)
def test_a_send_s_recipient_is_one_address_that_erase_finds(tx, recipient):
    """It may have a display name, a quoted local part, letters outside ASCII, no domain, and 1,000 characters."""
    send_in_transaction(tx, make_sent(recipient))
    assert tx.value("SELECT recipient FROM mailglass_deliveries") == strip_display_name(recipient)


@pytest.mark.parametrize(
    "recipient",
    [
        f"Ada {ADA}",
        f"{ADA} {BOB}",
        f"{ADA},{BOB}",
        f"{ADA}\n{BOB}",
        f"{ADA}/{BOB}",
        f"<{ADA}> Ada",
        f"{ADA}\x00",
        f"{ADA}\ud800",
        f"\ufffd{ADA}",
        f"{'x' * 988}@example.com.",
        f"{ADA} {'x' * 140_000}",
    ],
)
def test_a_recipient_that_erase_would_not_find_is_refused(recipient):
    """A name without brackets, several addresses, a character that cannot be stored, more than 1,000 characters."""
    with pytest.raises(InvalidEventError, match=r"sent\[1\].recipient must be one address of at most 1,000") as caught:
        validate_sends("acme", "postmark", [make_sent(), make_sent(recipient)])
    assert "@" not in str(caught.value)


def test_a_message_id_that_is_the_recipients_address_is_refused():
    """The ledger keeps a message id, and can never be erased. A Message-ID that only looks like an address is one."""
    for id_ in (ADA.upper(), f"<{ADA}>"):
        with pytest.raises(InvalidEventError, match=r"sent\[0\].message_id must not be the recipient's address"):
            validate_sends("acme", "postmark", [make_sent(message_id=id_)])
    assert validate_sends("acme", "postmark", [make_sent(message_id=f"<1.{ADA}>")])[0].message_id == f"<1.{ADA}>"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sent": [make_sent(), make_sent("")]}, r"sent\[1\].recipient must be an address"),
        ({"sent": [make_sent(message_id=None)]}, r"sent\[0\].message_id must be a string of 1 to 512 characters"),
        ({"sent": [make_sent(message_id="a\x00b")]}, r"sent\[0\].message_id"),
        ({"sent": [make_sent(message_id="x" * 513)]}, r"sent\[0\].message_id"),
        ({"sent": [make_sent(message_id=True)]}, r"sent\[0\].message_id"),
        (
            {"sent": [make_sent(type="delivered")]},
            r"sent\[0\].type is not a known type; known types: dispatched, failed",
        ),
        ({"sent": [make_sent(occurred_at=NOW.replace(tzinfo=None))]}, r"sent\[0\].occurred_at must have a time zone"),
        ({"sent": ["ada@example.com"]}, r"sent\[0\] must be a Sent"),
        ({"sent": None}, "sent must be a list of Sent"),
        ({"stream": "marketing"}, "stream is not a known stream; known streams: transactional, operational, bulk"),
        ({"mailable": ""}, "mailable must be a string"),
        ({"provider": " "}, "provider must be a string"),
        ({"tenant_id": ""}, "tenant_id must be a string"),
        ({"metadata": []}, "metadata must be a mapping"),
        ({"metadata": {"k": object()}}, r"metadata\['k'\] is a object"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(db, arguments, message):
    """The error names the field and has no value."""
    with db.engine.begin() as connection:
        with pytest.raises(InvalidEventError, match=message) as caught:
            send(connection, **{"sent": [make_sent()], **arguments})
        assert "@" not in str(caught.value)
    assert db.value(LEDGER) == 0
    assert db.rows(DELIVERIES) == []


def test_an_autocommit_connection_is_refused(db):
    """Half of a send could not be rolled back."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            send(connection, make_sent())
        assert db.rows(DELIVERIES) == []


def test_the_tenant_is_the_installations_if_none_is_given(db):
    """It is MAILGLASS_TENANT, `default` if unset; and `append` refuses a send's key."""
    send_in_transaction(db, make_sent(), tenant_id=None)
    assert db.rows("SELECT tenant_id FROM mailglass_deliveries") == [("default",)]
    with db.engine.begin() as connection, pytest.raises(InvalidEventError, match="must not begin with"):
        append(connection, tenant_id="default", type="sent", occurred_at=NOW, idempotency_key="send:1")


def test_the_settings_are_the_callers_again_and_its_own_rows_stay(db):
    """This holds even if the database refuses a delivery."""
    db.run("ALTER TABLE mailglass_deliveries ADD CONSTRAINT odd CHECK (mailable <> 'odd')")
    own = factories.delivery(db)
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL TimeZone = 'Asia/Kathmandu'")
        connection.exec_driver_sql("UPDATE mailglass_deliveries SET stream = 'bulk'")
        with pytest.raises(mailglass_reconcile.MailglassReconcileError, match="23514"):
            send(connection, make_sent(), mailable="odd")
        assert connection.exec_driver_sql("SHOW TimeZone").scalar_one() == "Asia/Kathmandu"
    assert db.rows("SELECT id::text, stream FROM mailglass_deliveries") == [(own, "bulk")]
    assert db.value(LEDGER) == 0


def test_an_event_that_the_database_refuses_to_link_costs_no_send(db):
    webhook_in(db, event())
    db.run("ALTER TABLE mailglass_events ADD CONSTRAINT odd CHECK (type <> 'reconciled')")
    (recorded,) = send_in_transaction(db, make_sent())
    assert recorded.linked == 0
    assert db.rows("SELECT last_event_type FROM mailglass_deliveries") == [("dispatched",)]
    assert db.value(OPEN) == 1
    db.run("ALTER TABLE mailglass_events DROP CONSTRAINT odd")


def test_an_event_whose_first_id_names_another_delivery_is_left_to_the_sweep(db):
    """The results of the send do not have it, so nothing would broadcast it."""
    factories.delivery(db, "m-0", recipient=ADA)
    factories.orphan(db, factories.postmark("m-1", provider_message_id="m-0", recipient=ADA))
    db.run("UPDATE mailglass_deliveries SET provider_message_id = 'later'")
    assert reconcile().linked == 0
    db.run("UPDATE mailglass_deliveries SET provider_message_id = 'm-0'")
    send_in_transaction(db, make_sent())
    assert db.value(OPEN) == 1
    assert reconcile().linked == 1


def test_an_event_that_a_sweep_holds_is_not_waited_for(db):
    """The sweep links it, or a later one does."""
    webhook_in(db, event())
    with db.engine.begin() as sweep:
        sweep.exec_driver_sql("SELECT FROM mailglass_open_orphans FOR UPDATE")
        with db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
            assert send(connection, make_sent())[0].linked == 0
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert reconcile().linked == 1


FORBIDDING = """
CREATE FUNCTION public.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '42501'; END $$;
CREATE TRIGGER forbid BEFORE INSERT ON public.mailglass_events FOR EACH ROW WHEN (NEW.type = 'reconciled')
EXECUTE FUNCTION public.forbid();
"""


def test_an_event_whose_link_is_forbidden_costs_no_send(db, caplog):
    """A trigger, a policy or a missing privilege forbids it; a sweep of another role may link."""
    webhook_in(db, event())
    db.run(FORBIDDING)
    assert send_in_transaction(db, make_sent())[0].linked == 0
    assert "events of a send cannot be linked (SQLSTATE 42501)" in caplog.text
    db.run("DROP TRIGGER forbid ON mailglass_events")
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert reconcile().linked == 1


def test_a_conflict_while_an_event_is_linked_is_the_callers_to_retry(db):
    """It concerns the whole transaction, so the send is not recorded without its event."""
    webhook_in(db, event())
    db.run(FORBIDDING.replace("42501", "40001"))
    with pytest.raises(mailglass_reconcile.MailglassReconcileError) as conflict:
        send_in_transaction(db, make_sent())
    assert conflict.value.is_transient
    db.run("DROP TRIGGER forbid ON mailglass_events")
    assert db.rows(DELIVERIES) == []


def test_a_conflict_while_a_send_is_stored_aborts_the_callers_transaction(db):
    db.run(FORBIDDING.replace("42501", "40001").replace("'reconciled'", "'dispatched'"))
    with db.engine.connect() as connection, connection.begin():
        with pytest.raises(mailglass_reconcile.MailglassReconcileError) as conflict:
            send(connection, make_sent())
        assert conflict.value.is_transient
        with pytest.raises(sa.exc.DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        connection.rollback()
    db.run("DROP TRIGGER forbid ON mailglass_events")


def test_a_link_of_another_writer_later_in_the_transaction_of_a_send_closes_its_orphan(tx):
    """Linking closes orphans itself, without the ledger's trigger, but only until it is done."""
    webhook_in(tx, event())
    other, delivery = factories.orphan(tx, factories.postmark("m-2")), factories.delivery(tx, "m-2")
    assert send_in_transaction(tx, make_sent())[0].linked == 1
    factories.insert(tx, events=[factories.reconciled_row(other, delivery)])
    assert tx.value(OPEN) == 0


@pytest.mark.slow
def test_the_same_send_at_the_same_time_in_opposite_order_is_recorded_once(db):
    """In twenty rounds there is no deadlock, and both calls return the same deliveries."""
    for turn in range(20):
        rows = [make_sent(f"u{n}@example.com", f"{turn}-{n}") for n in range(10)]
        first, second = record_together(db, send, rows, rows[::-1])
        assert [delivery.delivery_id for delivery in first] == [delivery.delivery_id for delivery in second[::-1]]
    assert db.value(LEDGER) == len(db.rows(DELIVERIES)) == 200


@pytest.mark.slow
def test_sends_that_share_ids_at_the_same_time_in_opposite_order_do_not_deadlock(db):
    """In twenty rounds there is no deadlock, and one delivery of each id has the provider."""
    for turn in range(20):
        ids = [f"{turn}-{n}" for n in range(10)]
        record_together(db, send, [make_sent(ADA, id_) for id_ in ids], [make_sent(BOB, id_) for id_ in reversed(ids)])
    rows = db.rows("SELECT count(*), count(provider) FROM mailglass_deliveries GROUP BY provider_message_id")
    assert set(rows) == {(2, 1)}


@pytest.mark.parametrize("message_ids", [("m-1", "m-2"), ("m-2", "m-1")])
def test_deliveries_are_stored_in_the_order_of_their_message_ids(db, message_ids):
    """While a call waits for the first of two rows, the second is not locked, whatever the order of the arguments."""
    with ThreadPoolExecutor(1) as threads, db.engine.begin() as holder:
        send(holder, make_sent(ADA, "m-1"))
        waiting = threads.submit(send_in_transaction, db, *(make_sent(BOB, id_) for id_ in message_ids))
        wait_until(lambda: db.value(WAITING) == 1)
        with db.engine.begin() as second_writer:
            second_writer.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            send(second_writer, make_sent("carl@example.com", "m-2"))
        holder.rollback()
        assert len(waiting.result(timeout=PATIENCE)) == 2


IN_ORDER_OF_KEYS = """
SELECT d.provider_message_id FROM mailglass_events AS e JOIN mailglass_deliveries AS d ON d.id = e.delivery_id
 ORDER BY e.idempotency_key COLLATE "C"
"""


@pytest.mark.parametrize("message_ids", [("m-1", "m-2"), ("m-2", "m-1")])
def test_events_are_stored_in_the_order_of_their_keys(db, message_ids):
    """The same sends are recorded a second time, and the call waits for the first key."""
    with db.engine.connect() as undone:
        send(undone, make_sent(ADA, "m-1"), make_sent(ADA, "m-2"))
        first, second = undone.exec_driver_sql(IN_ORDER_OF_KEYS).scalars()
    with ThreadPoolExecutor(1) as threads, db.engine.begin() as holder:
        send(holder, make_sent(ADA, first))
        waiting = threads.submit(send_in_transaction, db, *(make_sent(ADA, id_) for id_ in message_ids))
        wait_until(lambda: db.value(WAITING) == 1)
        with db.engine.begin() as second_writer:
            second_writer.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            send(second_writer, make_sent(ADA, second))
        holder.rollback()
        assert len(waiting.result(timeout=PATIENCE)) == 2


def test_what_overlaps_with_the_send_is_linked_by_the_next_sweep(db):
    """Neither transaction sees or waits for the other, and the application does not call `broadcast`."""
    with db.engine.connect() as sending, db.engine.connect() as receiving:
        send(sending, make_sent())
        record(receiving, event())
        sending.commit()
        receiving.commit()
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert reconcile().linked == 1


def test_keys_of_an_older_rule_are_computed_again(db):
    """They may be wrong: an event under the send's id that names another id is not linked."""
    webhook_in(db, event(), event("m-2", provider_event_id="2"))
    db.run("UPDATE mailglass_open_orphans SET rank = 1, arrived_at = arrived_at - interval '2 minutes'")
    db.run("UPDATE mailglass_open_orphan_ids SET candidate_id = 'm-1' WHERE candidate_id = 'm-2'")
    assert send_in_transaction(db, make_sent())[0].linked == 1
    assert reconcile().unmatched == 1


def test_an_event_that_is_expired_stays_open(tx):
    """A sweep leaves it open too."""
    webhook_in(tx, event())
    tx.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '8 days'")
    assert send_in_transaction(tx, make_sent())[0].linked == 0


def test_a_database_without_the_columns_of_newer_mailglasses_will_do(db):
    """`status`, `idempotency_key` and `last_error` do not exist in every version."""
    db.run("ALTER TABLE mailglass_deliveries DROP COLUMN status, DROP COLUMN idempotency_key, DROP COLUMN last_error")
    webhook_in(db, event())
    assert send_in_transaction(db, make_sent())[0].linked == 1


def test_a_plain_connection_s_caller_broadcasts_after_the_commit(db):
    """Each link is published once on both channels, like a sweep's, without an address."""
    webhook_in(db, event(recipient=ADA))
    db.witness.messages()
    with db.engine.begin() as connection:
        recorded = send(connection, make_sent(), make_sent())
        assert db.witness.messages() == []
    mailglass_reconcile.broadcast(recorded)
    published = db.witness.messages()
    assert len(published) == 2
    assert {payload["event_type"] for _, payload in published} == {"reconciled"}
    assert "@" not in repr((recorded, published)).replace(ADA, "@" * (ADA in repr(published)))


def test_orphans_of_other_recipients_do_not_displace_those_of_the_sends_recipients(db):
    """A bounded number of orphans is read, those of the send's recipients first."""
    webhook_in(db, *(event(recipient=f"u{n}@example.com", provider_event_id=f"{n:02}") for n in range(30)))
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings.model_copy(update={"batch_size": 10}))
    recorded = send_in_transaction(db, *(make_sent(f"u{n}@example.com") for n in range(20, 30)))
    assert [result.linked for result in recorded] == [1] * 10


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_thousand_recipients_cost_half_a_second_of_cpu_at_most(db, shared):
    """Only this process's CPU time is measured, which other load does not change."""
    spent = []
    for turn in range(3):
        many = [make_sent(f"u{n}@example.com", str(turn) if shared else f"{turn}-{n}") for n in range(1_000)]
        events = [event(m.message_id, recipient=m.recipient, provider_event_id=m.recipient + str(turn)) for m in many]
        webhook_in(db, *events[:50])
        with db.engine.begin() as connection:
            started_at = time.process_time()
            recorded = send(connection, *many)
            spent.append(time.process_time() - started_at)
        assert sum(result.linked for result in recorded) == 50
    assert min(spent) < 0.5


@pytest.mark.parametrize("count", [1, 40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_send_is_one_round_trip_whatever_its_size(tx, count):
    """At most twelve if events are open for it.

    All that is sent counts: savepoints, and the settings of the transaction, which are taken and given back with them.
    """
    now = [Sent(recipient=f"u{n}@example.com", message_id=f"now-{n}") for n in range(count)]
    new, wide = ([make_sent(f"u{n}@example.com", id_ or f"m-{n}") for n in range(count)] for id_ in (None, "wide"))
    open_ = [event("wide", recipient=f"u{n}@example.com", provider_event_id=str(n)) for n in range(count)]
    webhook_in(tx, *open_)
    for sent, most in ((now, 1), (now, 1), (new, 1), (new, 1), (wide, 12), (wide, 1)):
        tx.connection.exec_driver_sql("SELECT 1")
        with round_trips(tx.connection.connection.driver_connection) as counts:
            send(tx.connection, *sent)
        assert counts[0] <= most
