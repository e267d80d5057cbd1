"""No address goes into the ledger, which can never be erased."""

import pytest

import factories
from mailglass_reconcile import reconcile as sweep
from recording import event, metadata, record

ADDRESSES = "SELECT count(*) FROM mailglass_events AS e WHERE e::text ~* '(bob|@|%40)'"


@pytest.mark.parametrize("attached", [True, False])
def test_that_a_recipient_is_known_is_kept_and_the_recipient_is_not(tx, attached):
    """The flag stays with the event forever, whether it was attached at once or is an orphan."""
    if attached:
        factories.delivery(tx, "m-1", recipient="bob@example.com")
    record(tx.connection, event("m-1", recipient="bob@example.com"))
    assert metadata(tx)["recipient_known"] is True
    assert tx.value(ADDRESSES) == 0


def test_without_a_recipient_there_is_no_flag(tx):
    """Not even if the caller's own metadata claims one."""
    record(tx.connection, event("m-1", recipient="  ", metadata={"recipient_known": True}))
    assert "recipient_known" not in metadata(tx)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["recipient", "Recipient", "EMAIL", "Email", " email "])
def test_an_address_under_its_usual_names_is_the_recipient_and_is_left_out(tx, key):
    """However the provider spells the name; as in a sweep, it tells deliveries apart."""
    factories.delivery(tx, "m-1", recipient="ann@example.com")
    bob = factories.delivery(tx, "m-1", recipient="bob@example.com")
    (recorded,) = record(tx.connection, event("m-1", metadata={key: "bob@example.com", "tag": "welcome"}))
    assert str(recorded.delivery_id) == bob
    assert (metadata(tx)["tag"], metadata(tx)["recipient_known"]) == ("welcome", True)
    assert tx.value(ADDRESSES) == 0


@pytest.mark.parametrize("written", ["Bob <BOB@example.com>", ' "Bob, Jr." <bob@example.com> ', "<bob@example.com>"])
def test_a_recipient_may_have_a_display_name(tx, written):
    """Its address is what is compared, and what is kept with an orphan."""
    factories.delivery(tx, "m-1", recipient="ann@example.com")
    bob = factories.delivery(tx, "m-1", recipient="bob@example.com")
    attached, _ = record(tx.connection, event("m-1", recipient=written), event("m-2", recipient=written))
    assert str(attached.delivery_id) == bob
    assert tx.value("SELECT lower(recipient) FROM mailglass_open_orphans") == "bob@example.com"


def test_the_open_orphan_forgets_the_recipient_when_it_is_linked(db):
    """What told two deliveries of one message apart leaves no trace."""
    with db.engine.begin() as connection:
        record(connection, event("m-1", recipient="Bob@example.com"))
    factories.delivery(db, "m-1", recipient="ada@example.com")
    bob = factories.delivery(db, "m-1", recipient="bob@example.com")
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert sweep().linked == 1
    assert str(db.value("SELECT delivery_id FROM mailglass_events WHERE type = 'reconciled'")) == bob
    assert db.value(ADDRESSES) == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_a_strict_writer_leaves_out_whatever_looks_like_an_address(tx):
    """In texts, lists and keys of any depth, and in the event's id; what is left is stored."""
    given = {
        "to": "Bob <bob@example.com>",
        "link": "https://example.com/?e=bob%40example.com",
        "tags": ["bob@example.com", "welcome"],
        "data": {"bob@example.com": 1, "bounce": {"to": "bob@example.com", "code": 550}},
        "note": "at @ noon",
    }
    record(tx.connection, event("m-1", provider_event_id="Bounce:bob@example.com", metadata=given), strict=True)
    assert metadata(tx) == {
        "tags": ["welcome"],
        "data": {"bounce": {"code": 550}},
        "note": "at @ noon",
        "provider": "postmark",
        "message_id": "m-1",
    }
    assert tx.value("SELECT count(*) FROM mailglass_events AS e WHERE e::text ~* 'bob'") == 0


def test_without_strict_the_callers_metadata_is_stored_as_given(tx):
    """The documentation says so, and names the way to be strict."""
    record(tx.connection, event("m-1", metadata={"to": "bob@example.com"}))
    assert metadata(tx)["to"] == "bob@example.com"
