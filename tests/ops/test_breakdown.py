"""Why orphans are open, grouped; and which open orphans name a message."""

import factories
import mailglass_reconcile
from mailglass_reconcile.ops.orphans import Filters, break_down_last_sweep, of_message, page


def astray(db, number, tenant="default", provider=factories.postmark):
    """Add a delivery of `acme`, and an event of another tenant that names it."""
    factories.delivery(db, f"m-{number}", tenant_id="acme")
    return factories.orphan(db, provider(f"m-{number}"), tenant_id=tenant)


def test_orphans_of_another_tenant_are_one_group_that_names_it(db):
    """`6,000 tenant_mismatch: default → acme`, and not 6,000 lines."""
    for number in range(7):
        astray(db, number)
    astray(db, 8, provider=factories.sendgrid)
    factories.orphan(db, factories.postmark("nobody's"), tenant_id="default")
    mailglass_reconcile.reconcile()
    found = [tuple(one) for one in break_down_last_sweep(db.database, Filters()).causes]
    assert found == [
        ("tenant_mismatch", "default", "postmark", "acme", 7),
        ("tenant_mismatch", "default", "sendgrid", "acme", 1),
        ("unmatched", "default", "postmark", None, 1),
    ]


def test_a_list_is_counted_if_a_sweep_counts_by_its_filters(db):
    """By state, tenant and provider, and those in their grace as they are now; not by type, age or message."""
    for number in range(3):
        astray(db, number)
    mailglass_reconcile.reconcile()
    factories.orphan(db, factories.postmark("new"), tenant_id="default", age_seconds=1)
    expected = [
        ({}, 4),
        ({"state": "waiting"}, 1),
        ({"state": "tenant_mismatch"}, 3),
        ({"tenant_id": "default", "provider": "Postmark"}, 3),
        ({"tenant_id": "acme"}, 0),
        ({"type": "delivered"}, None),
        ({"older": 10.0}, None),
        ({"message_id": "m-1"}, None),
        ({"state": "expired"}, None),
    ]
    found = [(filters, break_down_last_sweep(db.database, Filters(**filters))) for filters, _ in expected]
    assert [(filters, each and each.orphans) for filters, each in found] == expected


def test_before_the_first_full_sweep_nothing_is_counted(db):
    """A dash, and no zero."""
    astray(db, 1)
    assert break_down_last_sweep(db.database, Filters()) is None


def test_what_a_sweep_left_although_it_matched_is_listed_in_that_number(db):
    """408 matched led to an empty list."""
    factories.insert(
        db,
        deliveries=[factories.delivery_row(f"m-{n}") for n in range(12)],
        events=[factories.orphan_row(factories.postmark(f"m-{n}")) for n in range(12)],
    )
    assert mailglass_reconcile.reconcile(limit=4).skipped_limit == 8
    found = page(db.database, Filters(state="matched"))
    assert break_down_last_sweep(db.database, Filters(state="matched")).orphans == len(found.orphans) == 8
    assert all(one.delivery_id for one in found.orphans)


def test_a_message_is_named_by_orphans_of_every_tenant(db):
    """In any spelling of the id, the newest first; a delivery of another tenant is what they lack."""
    event = astray(db, 1, tenant="globex")
    astray(db, 2, tenant="globex")
    newer = factories.orphan(db, factories.postmark("m-1"), tenant_id="initech", age_seconds=100)
    unseen = of_message(db.database, "m-1", limit=5)
    assert [(one.event_id, one.state) for one in unseen.orphans] == [(newer, "unseen"), (event, "unseen")]
    mailglass_reconcile.reconcile()
    swept = of_message(db.database, "<m-1>", limit=5)
    assert [(one.event_id, one.tenant_id, one.state) for one in swept.orphans] == [
        (newer, "initech", "tenant_mismatch"),
        (event, "globex", "tenant_mismatch"),
    ]
    one = of_message(db.database, "m-1", limit=1)
    assert ([orphan.event_id for orphan in one.orphans], one.number) == ([newer], 2)
    assert of_message(db.database, "nobody's", limit=5).orphans == []
