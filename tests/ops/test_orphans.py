"""Pages of open orphans: their stored states, their order, and that none is missing or listed twice."""

import datetime as dt
import json
import uuid
from collections import Counter

import pytest

import factories
import mailglass_reconcile
from mailglass_reconcile.ops.orphans import find_by_message, load_page, make_filter
from mailglass_reconcile.rules.states import OPEN_STATES
from marking import nightly_unless
from recording import event, record


@pytest.fixture
def zoo(db):
    """Insert open orphans of each state; return the states by event id."""
    for message, columns in {
        "one": {},
        "theirs": {"tenant_id": "other"},
        "hers": {"recipient": "grace@example.com"},
    }.items():
        factories.delivery(db, message, **columns)
    for recipient in ("a@example.com", "b@example.com"):
        factories.delivery(db, "many", recipient=recipient)
    states = {}
    for age, (metadata, state) in enumerate(
        [
            (factories.postmark("one"), "matched"),
            (factories.postmark("nobody's"), "unmatched"),
            (factories.postmark("nobody's", recipient="ada@example.com"), "unmatched"),
            ({"provider": "postmark"}, "unmatchable"),
            ({"message_id": "one"}, "unmatchable"),
            (factories.postmark("theirs"), "tenant_mismatch"),
            (factories.postmark("hers", recipient="ada@example.com"), "recipient_mismatch"),
            (factories.postmark("many"), "ambiguous"),
            (factories.sendgrid("nobody's"), "unmatched"),
        ]
    ):
        states[factories.orphan(db, metadata, age_seconds=300 + 60 * age)] = state
    states[factories.orphan(db, factories.postmark("one"), age_seconds=-200)] = "waiting"
    return states


def list_orphans(db, **options):
    """Return the orphans of all pages in order."""
    names = {"limit"} & options.keys()
    how = {name: options.pop(name) for name in names}
    collected, after = [], None
    while True:
        page = load_page(db.database, make_filter(**options), after=after, **how)
        collected += page.orphans
        after = page.after
        if after is None:
            return collected


def test_each_orphan_has_the_state_in_which_a_sweep_left_it(db, zoo):
    """Without a sweep, orphans past their grace are unseen; what a sweep did not link is matched, with its delivery."""
    unseen = {id_: "waiting" if state == "waiting" else "unseen" for id_, state in zoo.items()}
    assert {orphan.event_id: orphan.state for orphan in list_orphans(db)} == unseen
    assert {(orphan.provider, orphan.candidate_ids, orphan.delivery_id) for orphan in list_orphans(db)} == {
        (None, (), None)
    }
    counts = mailglass_reconcile.reconcile(limit=1).as_dict()
    matched = factories.orphan(db, factories.postmark("one"), age_seconds=200)
    assert mailglass_reconcile.reconcile(limit=1).linked == 1
    zoo = {id_: state for id_, state in zoo.items() if state != "matched"}
    assert {orphan.event_id: orphan.state for orphan in list_orphans(db)} == zoo
    expected = Counter(state for state in zoo.values() if state != "waiting")
    assert {state: counts[state] for state in expected} == expected
    assert matched not in zoo


def test_what_was_linkable_and_left_has_its_delivery(db):
    """The delivery is the one that a sweep would link now; other orphans have none."""
    delivery = factories.delivery(db, "one")
    for age in (300, 200):
        factories.orphan(db, factories.postmark("one"), age_seconds=age)
    factories.orphan(db, factories.postmark("nobody's"), age_seconds=100)
    assert mailglass_reconcile.reconcile(limit=1).skipped_limit == 1
    rows = [(orphan.state, orphan.delivery_id) for orphan in list_orphans(db)]
    assert rows == [("unmatched", None), ("matched", delivery)]


def test_a_page_has_the_time_of_the_last_full_sweep(db):
    """A sweep of one tenant does not count, and there may be none; expired orphans are matched on reading."""
    factories.orphan(db, factories.postmark("one"), age_seconds=300)
    mailglass_reconcile.reconcile("acme")
    assert load_page(db.database, make_filter()).as_of is None
    mailglass_reconcile.reconcile()
    finished_at = db.value("SELECT to_json(max(finished_at)) #>> '{}' || 'Z' FROM mailglass_reconcile_runs")
    assert load_page(db.database, make_filter()).as_of == finished_at
    assert load_page(db.database, make_filter(state="expired")).as_of is None


@pytest.mark.slow
@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize(
    "state",
    nightly_unless(("waiting", "unmatched").__contains__, [state for state in OPEN_STATES if state != "expired"]),
)
def test_a_state_lists_its_own_orphans_and_no_other(db, zoo, swept, state):
    """After a sweep they have its states; before it they are unseen."""
    if swept:
        mailglass_reconcile.reconcile()
        zoo = {id_: stored for id_, stored in zoo.items() if stored != "matched"}
        new = factories.orphan(db, factories.postmark("one"), age_seconds=100)
        zoo[new] = "unseen"
    else:
        zoo = {id_: "waiting" if stored == "waiting" else "unseen" for id_, stored in zoo.items()}
    expected = {id_ for id_, stored in zoo.items() if stored == state}
    assert {orphan.event_id for orphan in list_orphans(db, state=state)} == expected
    assert {orphan.event_id for orphan in list_orphans(db, state=state, limit=1)} == expected


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_pages_hold_every_orphan_once_in_order_of_arrival(db, zoo, limit):
    """Whatever the size of a page, the newest come first."""
    assert sorted(orphan.event_id for orphan in list_orphans(db, limit=limit)) == sorted(zoo)
    times = [orphan.arrived_at for orphan in list_orphans(db, limit=limit)]
    assert times == sorted(times, reverse=True)


def test_orphans_of_one_moment_are_on_one_page_each(db):
    """A writer's transaction gives all its rows one time; ties are ordered by the event's id."""
    rows = [factories.orphan_row(factories.postmark("x")) for _ in range(7)]
    factories.insert(db, events=rows)
    assert len({orphan.arrived_at for orphan in list_orphans(db)}) == 1
    assert sorted(orphan.event_id for orphan in list_orphans(db, limit=2)) == sorted(row["id"] for row in rows)


def test_filters_are_by_tenant_provider_type_age_and_message_id(db):
    """After a sweep has stored them, a provider and a message id match in any spelling."""
    orphan = factories.orphan(db, factories.postmark("ABCDEF00-0000-4000-8000-000000000001"), age_seconds=7_200)
    hers = factories.orphan(
        db, {"provider": "Amazon SES", "mail": {"messageId": "m-1"}}, tenant_id="b", type="bounced", age_seconds=300
    )
    always = [
        ({"tenant_id": "b"}, [hers]),
        ({"tenant_id": "c"}, []),
        ({"type": "bounced"}, [hers]),
        ({"min_age_seconds": 3_600.0}, [orphan]),
        ({"max_age_seconds": 3_600.0}, [hers]),
        ({"min_age_seconds": 100.0, "max_age_seconds": 9_000.0}, [hers, orphan]),
        ({"min_age_seconds": 9_000.0}, []),
    ]
    stored = [
        ({"provider": "ses"}, [hers]),
        ({"provider": " Postmark"}, [orphan]),
        ({"message_id": "<abcdef00-0000-4000-8000-000000000001>"}, [orphan]),
        ({"message_id": "m-1@eu-west-1.amazonses.com"}, [hers]),
        ({"message_id": "m-2"}, []),
        ({"message_id": "m-1", "tenant_id": "acme"}, []),
        ({"state": "unmatched", "provider": "amazon_ses", "type": "bounced", "min_age_seconds": 60.0}, [hers]),
    ]
    for filters, expected in [*always, *((filters, []) for filters, _ in stored)]:
        assert [row.event_id for row in list_orphans(db, **filters)] == expected, filters
    mailglass_reconcile.reconcile()
    for filters, expected in [*always, *stored]:
        assert [row.event_id for row in list_orphans(db, **filters)] == expected, filters


def test_a_page_begins_after_an_event_that_was_linked_meanwhile(db):
    """A sweep between two pages does not move the cursor."""
    factories.delivery(db, "one")
    first = factories.orphan(db, factories.postmark("one"), age_seconds=300)
    second = factories.orphan(db, factories.postmark("two"), age_seconds=400)
    assert load_page(db.database, make_filter(), limit=1).after == first
    mailglass_reconcile.reconcile()
    assert [orphan.event_id for orphan in load_page(db.database, make_filter(), after=first).orphans] == [second]
    with pytest.raises(LookupError):
        load_page(db.database, make_filter(), after=str(uuid.uuid4()))


@pytest.mark.parametrize("state", [None, "expired"])
def test_no_page_is_empty_because_the_one_before_it_was_full(db, state):
    """The last page has no cursor even if it is full."""
    age = WEEK if state else 0
    ids = [factories.orphan(db, factories.postmark("x"), age_seconds=age + 500 - n) for n in range(4)]
    ids = ids if state else ids[::-1]
    first = load_page(db.database, make_filter(state=state), limit=2)
    second = load_page(db.database, make_filter(state=state), limit=2, after=first.after)
    assert [orphan.event_id for orphan in (*first.orphans, *second.orphans)] == ids
    assert (first.after, second.after) == (ids[1], None)


def test_what_is_open_is_counted_by_cause(db, zoo):
    """A tenant mismatch is counted with the delivery's tenant; counts respect the filters, but not the page size."""
    mailglass_reconcile.reconcile()
    for _ in range(3):
        factories.orphan(db, factories.postmark("theirs"))
    mailglass_reconcile.reconcile()
    page = load_page(db.database, make_filter(), limit=1, with_counts=True)
    assert page.causes[0] == ("tenant_mismatch", "acme", "postmark", "other", 4)
    assert page.total == sum(cause.number for cause in page.causes) == len(list_orphans(db))
    of_state = load_page(db.database, make_filter(state="unmatched"), with_counts=True)
    assert of_state.causes == [
        ("unmatched", "acme", "postmark", None, 2),
        ("unmatched", "acme", "sendgrid", None, 1),
    ]
    assert load_page(db.database, make_filter(type="delivered"), with_counts=True).total is None
    assert load_page(db.database, make_filter()).total is None


def test_so_many_are_counted_and_no_more(db, zoo, set_limits):
    """Beyond the limit, the number is a lower bound."""
    set_limits(most_counted=2)
    page = load_page(db.database, make_filter(), with_counts=True)
    assert (page.total, page.at_least) == (2, True)


def test_an_orphan_is_found_by_its_recipient_while_it_is_open(db):
    """An address matches in its usual spellings."""
    with db.begin() as connection:
        own, _ = record(
            connection,
            event(recipient="Ada@xn--bcher-kva.example"),
            event(recipient="bob@example.com", provider_event_id="2"),
        )
    for recipient in ("ada@bücher.example", "Ada <ADA@BÜCHER.EXAMPLE>"):
        page = load_page(db.database, make_filter(recipient=recipient), with_counts=True)
        assert [orphan.event_id for orphan in page.orphans] == [str(own.event_id)]
        assert page.total == 1
    assert list_orphans(db, recipient="grace@example.com") == []


def test_each_orphan_says_when_it_becomes_too_old(db):
    """An orphan expires a week after it arrived."""
    factories.orphan(db, factories.postmark("x"))
    (orphan,) = list_orphans(db)
    assert dt.datetime.fromisoformat(orphan.expires_at) - dt.datetime.fromisoformat(orphan.arrived_at) == dt.timedelta(
        days=7
    )


WEEK = 7 * 86_400


def test_expired_ones_come_from_the_ledger_and_without_those_that_were_linked(db):
    """Tenant and age filter them, pages do not overlap, and what the open set still holds does not matter."""
    factories.delivery(db, "linked")
    linked = factories.orphan(db, factories.postmark("linked"), age_seconds=WEEK + 50)
    old = [
        factories.orphan(
            db, factories.postmark(f"old {n}"), tenant_id=tenant, age_seconds=WEEK + 3_000 - 1_000 * n, type="opened"
        )
        for tenant in ("a", "acme", "z")
        for n in range(3)
    ]
    young = factories.orphan(db, factories.postmark("young"), tenant_id="acme")
    factories.insert(db, events=[factories.reconciled_row(linked, db.value("SELECT id FROM mailglass_deliveries"))])
    db.run("DELETE FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)", id=linked)
    for pruned in (False, True):
        if pruned:
            mailglass_reconcile.prune()
        for limit in (2, 100):
            listing = list_orphans(db, state="expired", limit=limit)
            assert [row.event_id for row in listing] == old
        assert {orphan.state for orphan in listing} == {"expired"}
        assert listing[0].candidate_ids == ("old 0",)
        assert [row.event_id for row in list_orphans(db)] == [young]
        assert [row.event_id for row in list_orphans(db, state="expired", tenant_id="z")] == old[6:]
        assert [row.event_id for row in list_orphans(db, state="expired", message_id="old 1")] == old[1::3]
        assert [row.event_id for row in list_orphans(db, state="expired", min_age_seconds=WEEK + 2_500.0)] == [
            old[0],
            old[3],
            old[6],
        ]
        assert list_orphans(db, state="expired", max_age_seconds=float(WEEK)) == []


def test_a_page_of_expired_ones_reads_a_bounded_number_of_orphans(db, set_limits):
    """If nothing passes the filter, the page ends early with a cursor; all pages together miss nothing."""
    set_limits(most_events_read=2)
    old = [factories.orphan(db, factories.postmark(str(n)), age_seconds=WEEK + 500 - n) for n in range(5)]
    page = load_page(db.database, make_filter(state="expired", message_id="4"), limit=1)
    assert (page.orphans, page.looked_at) == ([], 2)
    assert [orphan.event_id for orphan in list_orphans(db, state="expired", message_id="4", limit=1)] == [old[4]]


def test_a_page_by_type_looks_at_a_bounded_number_of_orphans(db, set_limits):
    """If few have the type, the page ends early with a cursor; all pages together miss nothing."""
    set_limits(most_orphans_read=4)
    ages = range(200, 900, 100)
    ids = [factories.orphan(db, factories.postmark("x"), age_seconds=900 - age, type="opened") for age in ages]
    rare = [factories.orphan(db, factories.postmark("x"), age_seconds=age, type="bounced") for age in (900, 100, 80)]
    page = load_page(db.database, make_filter(type="clicked"), limit=2)
    assert (page.orphans, page.looked_at) == ([], 9)
    assert page.after is not None
    assert list_orphans(db, type="clicked", limit=2) == []
    for filters, expected in (("bounced", rare), ("opened", ids)):
        event_ids = [orphan.event_id for orphan in list_orphans(db, type=filters, limit=2)]
        assert event_ids == expected[::-1]


@pytest.mark.parametrize("swept", [False, True])
def test_a_message_is_found_however_many_are_open_before_it(db, swept):
    """This holds before a sweep has stored keys, too."""
    for _ in range(5):
        factories.orphan(db, factories.postmark("not mine"), age_seconds=200)
    event = factories.orphan(db, factories.postmark("mine"), age_seconds=100)
    if swept:
        mailglass_reconcile.reconcile()
    assert [orphan.event_id for orphan in find_by_message(db.database, "mine", limit=20).orphans] == [event]


def test_applications_get_the_newest_orphans_that_a_full_sweep_checks(db):
    """Those in their grace, expired ones, and those of other tenants are left out."""
    ages = (300, 100, 200, 10, WEEK + 300)
    ids = [factories.orphan(db, factories.postmark("x"), age_seconds=age) for age in ages]
    factories.orphan(db, factories.postmark("x"), age_seconds=150, tenant_id="globex")
    with db.begin() as connection:
        orphans = mailglass_reconcile.find_orphans(connection, tenant_id="acme")
        assert [str(orphan.event_id) for orphan in orphans] == [ids[1], ids[2], ids[0]]
        assert mailglass_reconcile.find_orphans(connection, tenant_id="acme", limit=2) == orphans[:2]


def test_hostile_values_are_listed_like_any_other(db):
    """An arrival may be infinite, and an id may have any characters."""
    orphan = factories.orphan(db, factories.postmark("\u202e\U0001f4a9"))
    db.run("UPDATE mailglass_open_orphans SET arrived_at = 'infinity'")
    listed_orphan = list_orphans(db)[0]
    assert (listed_orphan.event_id, listed_orphan.state, listed_orphan.arrived_at) == (orphan, "waiting", "infinity")
    db.run("UPDATE mailglass_open_orphans SET arrived_at = now()::timestamp - interval '2 minutes'")
    mailglass_reconcile.reconcile()
    assert json.loads(json.dumps(list_orphans(db)[0].as_dict()))["candidate_ids"] == ["\u202e\U0001f4a9"]
