"""Manual links: a person links what no sweep links, within one tenant, with a reason that is stored."""

import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import commands
import factories
import mailglass_reconcile
from browsing import Visitor, app
from handling import register
from mailglass_reconcile import InvalidEventError, broadcast, link
from mailglass_reconcile.errors import DatabaseRefusedError
from mailglass_reconcile.ops import deliveries, explanation

pytestmark = pytest.mark.version_independent

WEEK = 7 * 86_400
REASON = "the second of two mails; ticket 4711"
METADATA = "SELECT metadata FROM mailglass_events WHERE type = 'reconciled'"


def stuck(db):
    """Return an orphan in each state in which no sweep links it."""
    factories.delivery(db, "hers", recipient="grace@example.com")
    for _ in range(2):
        factories.delivery(db, "many")
    return {
        "ambiguous": factories.orphan(db, factories.postmark("many"), type="bounced"),
        "recipient_mismatch": factories.orphan(db, factories.postmark("hers", recipient="ada@example.com")),
        "unmatched": factories.orphan(db, factories.postmark("nobody's")),
        "unmatchable": factories.orphan(db, {"provider": "postmark"}),
        "expired": factories.orphan(db, factories.postmark("old"), age_seconds=WEEK + 99),
    }


def link_manually(db, event, delivery, **more):
    """Link one event and broadcast it."""
    with db.engine.begin() as connection:
        recorded = link(connection, uuid.UUID(event), uuid.UUID(delivery), **{"reason": REASON, **more})
    broadcast([recorded])
    return recorded


def test_what_no_sweep_links_can_be_linked_by_hand(db):
    """This includes an expired orphan that the prune has removed from the open set."""
    events = stuck(db)
    mailglass_reconcile.prune()
    assert mailglass_reconcile.reconcile().linked == 0
    for state, event in events.items():
        assert explanation.explain(db.database, uuid.UUID(event)).state == state
        to = factories.delivery(db)
        recorded = link_manually(db, event, to)
        assert (str(recorded.event_id), str(recorded.delivery_id)) == (event, to)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    assert db.count_links() == len(events)
    assert len(db.witness.messages()) == 2 * len(events)


def test_the_delivery_is_brought_up_to_date_and_handlers_run(handler_db):
    """It works like any other link."""
    received = []
    mailglass_reconcile.on_event("bounced", name="collect")(lambda _, event: received.append(event.event_id))
    register(handler_db)
    event, to = factories.orphan(handler_db, {"provider": "postmark"}, type="bounced"), factories.delivery(handler_db)
    link_manually(handler_db, event, to)
    assert handler_db.rows("SELECT last_event_type, terminal FROM mailglass_deliveries") == [("bounced", True)]
    assert mailglass_reconcile.dispatch().handled == 1
    assert [str(event_id) for event_id in received] == [event]


def test_the_ledger_explain_and_the_page_say_who_linked_it_and_why(db):
    event, to = stuck(db)["ambiguous"], factories.delivery(db)
    link_manually(db, event, to, actor="ada")
    metadata = db.value(METADATA)
    assert (metadata["linked_by"], metadata["linked_by_actor"], metadata["reason"]) == ("hand", "ada", REASON)
    assert metadata["reconciled_from_event_id"] == event
    result = explanation.explain(db.database, uuid.UUID(event))
    assert (result.linked_by, result.linked_by_actor, result.reason) == ("hand", "ada", REASON)
    assert f"manually   ada: {REASON}" in commands.run_here("explain", event).stdout
    visitor = Visitor(app(db))
    assert f"ada: {REASON}" in visitor.get(f"/events/{event}").text
    assert "manually" in visitor.get(f"/deliveries/{to}").text
    with db.database.reading() as tx:
        assert deliveries.load_events(tx, [to], 1)[0].by_hand is True


def test_what_cannot_be_linked_is_refused_and_nothing_is_written(db):
    """Each error has a reason, and the caller's transaction goes on."""
    event, to = factories.orphan(db, {"provider": "postmark"}), factories.delivery(db)
    foreign = factories.delivery(db, tenant_id="other")
    long = factories.orphan(db, {}, tenant_id="t" * 1_001)
    delivery_of_long_tenant = factories.delivery(db, tenant_id="t" * 1_001)
    attached = factories.orphan(db, {}, delivery_id=to, needs_reconciliation=False)
    linked = factories.orphan(db, {"provider": "postmark"})
    link_manually(db, linked, to)
    for event_id, delivery, more, words in [
        (factories.new_id(), to, {}, "there is no event"),
        (event, factories.new_id(), {}, "there is no delivery"),
        (event, foreign, {}, "of different tenants"),
        (long, delivery_of_long_tenant, {}, "more than 1,000 characters"),
        (attached, to, {}, "not an orphan"),
        (linked, to, {}, "linked already"),
        (event, to, {"reason": "she is ada@example.com"}, "reason must not contain an e-mail address"),
        (event, to, {"reason": " "}, "reason must be a string"),
        (event, to, {"reason": "two\nlines"}, "reason must be a string"),
        (event, to, {"actor": "ada@example.com"}, "actor must not contain an e-mail address"),
    ]:
        with db.engine.begin() as connection:
            with pytest.raises(InvalidEventError, match=words):
                link(connection, event_id, delivery, **{"reason": REASON, **more})
            assert connection.scalar(sa.text("SELECT 1")) == 1
    assert db.count_links() == 1


def test_what_another_session_holds_is_not_waited_for(db):
    """The error says to try again; an expired orphan that was opened for it is closed again."""
    event, to = factories.orphan(db, {}, age_seconds=WEEK + 99), factories.delivery(db)
    mailglass_reconcile.prune()
    with db.engine.begin() as holder:
        holder.execute(sa.text("SELECT FROM mailglass_deliveries FOR UPDATE"))
        with db.engine.begin() as connection, pytest.raises(DatabaseRefusedError, match="try again"):
            link(connection, event, to, reason=REASON)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    link_manually(db, event, to)


def test_a_session_broadcasts_by_itself_and_not_after_a_rollback(db):
    """It works as after the other writers."""
    event, to = factories.orphan(db, {}), factories.delivery(db)
    with Session(db.engine) as session:
        recorded = link(session, event, to, reason=REASON)
        session.rollback()
        mailglass_reconcile.broadcast([recorded])
        assert db.witness.messages() == []
        link(session, event, to, reason=REASON)
        session.commit()
    assert len(db.witness.messages()) == 2


def test_the_command_links_and_names_the_user(db, monkeypatch):
    """A second time it fails with one line; an address is a usage error."""
    event, to = stuck(db)["ambiguous"], factories.delivery(db)
    monkeypatch.setenv("LOGNAME", "grace")
    result = commands.run_here("link", event, to, "--reason", REASON, "--yes")
    assert result.output == f"linked event {event} to delivery {to}\n"
    assert db.value(METADATA)["linked_by_actor"] == "grace"
    assert len(db.witness.messages()) == 2
    repeated = commands.run_unchecked(db, "link", event, to, "--reason", REASON, "--yes")
    assert (repeated.returncode, repeated.stderr.count("\n")) == (1, 1)
    assert f"mailglass-reconcile explain {event}" in repeated.stderr
    assert commands.run_here("link", event, to, "--reason", "to ada@example.com").exit_code == 2


def test_a_text_of_another_writer_that_looks_like_an_address_is_not_shown(db):
    """Our command refuses such a reason, but another writer may store anything."""
    event, to = factories.orphan(db, {}), factories.delivery(db)
    row = factories.reconciled_row(event, to)
    row["metadata"] = '{"linked_by": "hand", "linked_by_actor": "ada@example.com", "reason": "canary"}'
    db.broken.update(("I1", "I2"))
    factories.insert(db, events=[row])
    result = explanation.explain(db.database, uuid.UUID(event))
    assert (result.linked_by, result.linked_by_actor, result.reason) == ("hand", None, "canary")
