"""Search: an address, a message id or an event id finds deliveries and open orphans, newest first."""

import json
from collections.abc import Iterator

import pytest

import factories
import meter
from mailglass_reconcile import Sent, record_send
from mailglass_reconcile.ops import deliveries, orphans, search
from mailglass_reconcile.rules.addresses import make_index_key
from mailglass_reconcile.rules.addresses import normalize_address as compared
from mailglass_reconcile.store.database import Database
from mailglass_reconcile.store.queries import orphan_lists
from mailglass_reconcile.store.queries.orphan_lists import ListFilter
from mailglass_reconcile.store.tables import personal_data
from mailglass_reconcile.sweep import reconciler
from recording import event, record

ADA = "ada@bücher.example"


def search_for(db, text, tenant_id=None, **more):
    """Search for a term."""
    return search.find(db.database, search.parse_term(text, tenant_id), **more)


def ids(db, text, tenant_id=None, **more):
    """Return the ids of the hits, in order."""
    return [hit.id for hit in search_for(db, text, tenant_id, **more).hits]


def set_stored_at(db, id_, ago):
    """Set when a delivery was stored."""
    db.run(
        "UPDATE mailglass_deliveries SET inserted_at = now()::timestamp - CAST(:ago AS interval)"
        " WHERE id = CAST(:id AS uuid)",
        id=id_,
        ago=ago,
    )


SPELLINGS = [
    "ada@bücher.example",
    "ada@xn--bcher-kva.example",
    "Ada@BÜCHER.example",
    "Ada  <ADA@Bücher.example>",
    " <ada@xn--BCHER-kva.example>\n",
]


@pytest.mark.parametrize("typed", SPELLINGS)
def test_an_address_is_found_in_any_spelling(db, typed):
    """The stored spelling and the searched one may differ, also in case and display name; other addresses are not
    found.
    """
    own = {factories.delivery(db, f"m-{n}", recipient=spelling) for n, spelling in enumerate(SPELLINGS)}
    factories.delivery(db, "m-9", recipient="jada@bücher.example")
    (recorded,) = record_orphan(db, typed)
    assert set(ids(db, typed)) == own | {recorded}
    assert list_orphans(db, typed) == [recorded]


@pytest.mark.parametrize("typed", ["ada@example.com", "ADA@EXAMPLE.com"])
def test_an_address_in_ascii_is_found_in_any_case(db, typed):
    """`Ada@Example.com` was found only by a scan of all deliveries."""
    delivery = factories.delivery(db, "m-1", recipient="Ada@Example.com")
    assert ids(db, typed) == [delivery]
    assert ids(db, typed, "globex") == []


def record_orphan(db, recipient):
    """Record a webhook about an address, and return the ids of its open events."""
    with db.begin() as connection:
        return [str(recorded.event_id) for recorded in record(connection, event("nobody's", recipient=recipient))]


def list_orphans(db, recipient):
    """Return the open orphans that `orphans --recipient` lists."""
    return [
        orphan.event_id for orphan in orphans.load_page(db.database, orphans.make_filter(recipient=recipient)).orphans
    ]


def test_an_address_is_found_in_every_tenant_or_in_one(db):
    """Each tenant is probed for."""
    of = {tenant: factories.delivery(db, tenant, recipient=ADA, tenant_id=tenant) for tenant in ("acme", "b", "globex")}
    factories.delivery(db, "m-4", recipient="bob@bücher.example", tenant_id="only others")
    assert set(ids(db, ADA)) == set(of.values())
    assert ids(db, ADA, "globex") == [of["globex"]]
    assert ids(db, ADA, "only others") == []


def test_the_newest_come_first_and_it_is_known_that_there_are_more(db):
    """Deliveries are ordered by when they were stored, orphans by when they arrived."""
    first, second, third = (factories.delivery(db, f"m-{n}", recipient=ADA) for n in range(3))
    for id_, ago in ((first, "3 hours"), (second, "1 hour"), (third, "2 days")):
        set_stored_at(db, id_, ago)
    orphan = factories.orphan(db, factories.postmark("m-0"), age_seconds=7_200, tenant_id="globex")
    results, limited = search_for(db, ADA), search_for(db, ADA, limit=2)
    assert [hit.id for hit in results.hits] == [second, orphan, first, third]
    assert (results.deliveries, results.events, results.more) == (3, 1, False)
    assert [hit.id for hit in limited.hits] == [second, orphan]
    assert (limited.deliveries, limited.events, limited.more, limited.at_least) == (3, 1, True, False)


@pytest.mark.parametrize("swept", [False, True])
def test_a_delivery_brings_the_open_orphans_that_name_its_message(db, swept):
    """Orphans of other tenants are included, and orphans whose ids no sweep has stored yet."""
    delivery = factories.delivery(db, "m-1", recipient=ADA)
    orphan = factories.orphan(db, factories.postmark("m-1"), tenant_id="globex")
    if swept:
        reconciler.prepare(None, None).run()
    assert set(ids(db, ADA)) == set(ids(db, "m-1")) == set(ids(db, delivery)) == {delivery, orphan}
    assert ids(db, ADA, "globex") == []
    assert ids(db, "m-1", "globex") == [orphan]
    (run,) = [hit for hit in search_for(db, ADA).hits if hit.id == orphan]
    assert (run.kind, run.row.tenant_id, run.row.type) == ("event", "globex", "delivered")
    assert run.row.state == ("tenant_mismatch" if swept else "unseen")


def test_a_message_id_is_found_in_any_spelling(db):
    """It is found with and without brackets, for a delivery and for an event without one."""
    delivery = factories.delivery(db, "<abc@mail.example.com>")
    orphan = factories.orphan(db, factories.postmark("xyz@mail.example.com"))
    assert ids(db, "abc@mail.example.com") == [delivery]
    assert ids(db, "<xyz@mail.example.com>") == [orphan]


def test_an_event_brings_its_delivery(db):
    """The event may be linked to it or attached."""
    with db.begin() as connection:
        (sent,) = record_send(
            connection, tenant_id="acme", provider="postmark", sent=[Sent(recipient=ADA, message_id="m-1")]
        )
        (recorded,) = record(connection, event(recipient=ADA))
    delivery = str(sent.delivery_id)
    assert set(ids(db, str(recorded.event_id))) == {str(recorded.event_id), delivery}
    assert ids(db, str(recorded.event_id), "globex") == []


def test_an_open_orphan_is_found_by_the_address_that_its_webhook_named(db):
    """No send was recorded; an event about another recipient of the message is left out."""
    with db.begin() as connection:
        (own, _) = record(
            connection,
            event(recipient="Ada@Bücher.example"),
            event(recipient="bob@bücher.example", provider_event_id="2"),
        )
    assert ids(db, ADA) == [str(own.event_id)]
    assert len(ids(db, "m-1")) == 2


def test_of_a_message_to_many_only_what_may_be_about_the_address_is_found(db):
    """An event without a recipient may be about the address."""
    delivery = factories.delivery(db, "m-1", recipient=ADA, tenant_id="globex")
    with db.begin() as connection:
        record(connection, event(recipient="bob@bücher.example"))
        (unknown,) = record(connection, event(provider_event_id="2"))
    assert set(ids(db, ADA)) == {delivery, str(unknown.event_id)}
    assert len(ids(db, "m-1")) == 3


def test_no_record_holds_an_address(db):
    """This holds even if the mailable of a delivery is named by an address."""
    factories.delivery(db, "m-1", recipient=ADA)
    db.run("UPDATE mailglass_deliveries SET mailable = 'to ada@example.com'")
    (hit,) = search_for(db, ADA).hits
    assert "@" not in json.dumps(hit.as_dict())


@pytest.mark.parametrize("text", ["", " ", "a\x00b", "a\nb", "x" * 513])
def test_what_nothing_can_have_is_refused(text):
    """The error does not repeat the term."""
    with pytest.raises(ValueError, match="1 to 512 characters"):
        search.parse_term(text)


def test_what_is_in_no_row_is_not_found(db):
    """A term of any form may match nothing."""
    for text in (ADA, "m-1", factories.new_id()):
        assert search_for(db, text).hits == ()
        assert not search_for(db, text).more


WIDE = 100_000
LOAD = """
SET LOCAL session_replication_role = replica;
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT md5('delivery' || n)::uuid, 'tenant ' || mod(n, 50), 'Welcome', 'bulk',
       CASE WHEN mod(n, 5) = 0 THEN 'u' || n || '@example.com' ELSE 'ada@example.com' END, 'example.com',
       'message-' || n, 'dispatched', '2026-01-01', timestamp '2026-01-01' + make_interval(secs => n), '2026-01-01'
  FROM generate_series(1, 125000) AS n;
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, needs_reconciliation, inserted_at)
SELECT md5('event' || n)::uuid, 'acme', 'delivered', '2026-01-02', true, now() FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_open_orphans (event_id, tenant_id, arrived_at, provider, recipient, rank, ids, state)
SELECT md5('event' || n)::uuid, 'acme', now()::timestamp - make_interval(secs => n), 'postmark',
       'u' || n || '@example.com', 1, 1, 'unmatched' FROM generate_series(1, 20000) AS n;
INSERT INTO mailglass_open_orphan_ids (event_id, position, candidate_id)
SELECT md5('event' || n)::uuid, 1, 'message-' || n FROM generate_series(1, 20000) AS n;
"""
ORPHANS = 20_000


@pytest.fixture(scope="module", params=["fresh", "of an empty table"])
def wide(request, mailglass_databases, template, redis_url) -> Iterator[Database]:
    """Insert one address with 100,000 deliveries in 40 of 50 tenants, among 25,000 other deliveries."""
    with mailglass_databases.copy(template, redis_url) as copy:
        with copy.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE mailglass_deliveries SET (autovacuum_enabled = false)")
            for table in ("events", "open_orphans", "open_orphan_ids"):
                connection.exec_driver_sql(f"ALTER TABLE mailglass_{table} SET (autovacuum_enabled = false)")
            connection.exec_driver_sql("ANALYZE")
            connection.exec_driver_sql(LOAD)
            if request.param == "fresh":
                connection.exec_driver_sql("ANALYZE")
        yield Database(copy.engine, copy.settings)


@pytest.mark.slow
@pytest.mark.parametrize(("address", "at_most"), [("ada@example.com", WIDE + 1_000), ("U5@example.com", 500)])
def test_an_address_costs_its_own_deliveries(wide, address, at_most):
    """Addresses with 100,000 deliveries and with one are found by an index, whatever the statistics."""
    key = make_index_key(compared(address))
    newest = {"recipient_key": key, "message_ids": "{}", "ids": "{}", "most": search.READ_LIMIT, "size": 20}
    erased = {"key": key, "size": None}
    for statement, parameters in ((deliveries._NEWEST, newest), (personal_data._DELIVERIES, erased)):
        with wide.reading() as tx:
            values = {"tenant_id": None, **parameters}
            plan = meter.plan_of(tx, lambda: tx.execute(statement, values).all())  # noqa: B023
        assert not plan.whole
        assert "mailglass_deliveries_recipient_idx" in plan.indexes
        assert plan.read <= at_most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipient", "message_ids", "at_most"),
    [(None, ["message-7", "message-8"], 20), ("u9@example.com", None, ORPHANS + 20)],
)
def test_open_orphans_cost_their_ids_and_for_an_address_one_pass(wide, recipient, message_ids, at_most):
    """The number of other open orphans does not matter."""
    filters = ListFilter(recipient=recipient) if recipient else ListFilter(message_ids=frozenset(message_ids))
    with wide.reading() as tx:
        plan = meter.plan_of(tx, lambda: orphan_lists.load_newest(tx, filters, None, 20))
    assert plan.read <= at_most


@pytest.mark.slow
def test_of_a_hundred_thousand_deliveries_the_newest_are_found(wide):
    """They are counted exactly; `test_an_address_costs_its_own_deliveries` bounds the cost."""
    results = search.find(wide, search.parse_term("ada@example.com"))
    assert (results.deliveries, len(results.hits), results.more) == (WIDE, 50, True)
    assert [hit.at for hit in results.hits] == sorted((hit.at for hit in results.hits), reverse=True)
