"""Open orphans, counted by cause and listed by message."""

import re

import pytest

import commands
import factories
import mailglass_reconcile
from browsing import Visitor, app
from mailglass_reconcile.ops.orphans import find_by_message, load_page, make_filter

pytestmark = pytest.mark.version_independent


def astray(db, number, tenant="default", provider=factories.postmark):
    """Add a delivery of `acme`, and an event of another tenant that names its message."""
    factories.delivery(db, f"m-{number}", tenant_id="acme")
    return factories.orphan(db, provider(f"m-{number}"), tenant_id=tenant)


def test_orphans_of_another_tenant_are_one_group_that_names_it(db):
    """6,000 events that another tenant's webhook brought are one line, `6,000 tenant_mismatch: default → acme`."""
    for number in range(7):
        astray(db, number)
    astray(db, 8, provider=factories.sendgrid)
    factories.orphan(db, factories.postmark("nobody's"), tenant_id="default")
    mailglass_reconcile.reconcile()
    result = [tuple(cause) for cause in load_page(db.database, make_filter(), with_counts=True).causes]
    assert result == [
        ("tenant_mismatch", "default", "postmark", "acme", 7),
        ("tenant_mismatch", "default", "sendgrid", "acme", 1),
        ("unmatched", "default", "postmark", None, 1),
    ]


def test_the_tenant_that_a_cause_names_has_a_delivery_of_the_events_provider(db):
    """Another provider may have given its own message the same id, for a third tenant or for the event's own."""
    for number in range(5):
        for tenant, provider in ((f"abel {number}", "mailgun"), ("default", "sendgrid"), ("acme", "Amazon SES")):
            factories.delivery(db, f"m-{number}", tenant_id=tenant, provider=provider)
        factories.orphan(db, {"provider": "ses", "message_id": f"m-{number}"}, tenant_id="default")
    mailglass_reconcile.reconcile()
    for filters in ({}, {"min_age_seconds": 0.0}):  # counted by the sweep, and now
        causes = load_page(db.database, make_filter(**filters), with_counts=True).causes
        assert list(map(tuple, causes)) == [("tenant_mismatch", "default", "ses", "acme", 5)]


def test_a_list_is_counted_by_the_last_sweep_or_else_now(db):
    """The last sweep's counts answer state, tenant and provider; age and message are counted now, without expired
    orphans.
    """
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
        ({"min_age_seconds": 10.0}, 3),
        ({"message_id": "m-1"}, 1),
        ({"state": "expired"}, None),
    ]
    rows = [
        (filters, load_page(db.database, make_filter(**filters), with_counts=True).total) for filters, _ in expected
    ]
    assert rows == expected


def test_the_command_and_the_dashboard_count_a_list_alike(db):
    """The command counted what is open now, and the dashboard took the counts of the last sweep."""
    for number in range(3):
        factories.orphan(db, factories.postmark(f"nobody's-{number}"))
    mailglass_reconcile.reconcile()
    factories.orphan(db, factories.postmark("later"), age_seconds=500)
    assert "3 orphans; states as of " in commands.run(db, "orphans").stderr
    assert "3 unmatched: acme" in commands.run(db, "orphans").stderr
    text = " ".join(re.sub(r"<[^>]+>", " ", Visitor(app(db)).get("/orphans").text).split())
    assert "3 orphans; counts and states as of " in text


def test_before_the_first_full_sweep_a_list_is_counted_now(db):
    """The page has no time of a sweep."""
    astray(db, 1)
    listed = load_page(db.database, make_filter(), with_counts=True)
    assert (listed.total, listed.as_of) == (1, None)


def test_what_a_sweep_left_although_it_matched_is_listed_in_that_number(db):
    """The summary said 408 matched, and its link led to an empty list."""
    factories.insert_pairs(db, [f"m-{n}" for n in range(12)])
    assert mailglass_reconcile.reconcile(limit=4).skipped_limit == 8
    page = load_page(db.database, make_filter(state="matched"))
    assert load_page(db.database, make_filter(state="matched"), with_counts=True).total == len(page.orphans) == 8
    assert all(orphan.delivery_id for orphan in page.orphans)


def test_a_message_is_named_by_orphans_of_every_tenant(db):
    """Any spelling of the id is found, newest first; a mismatch names the other tenant's delivery."""
    event = astray(db, 1, tenant="globex")
    astray(db, 2, tenant="globex")
    newer = factories.orphan(db, factories.postmark("m-1"), tenant_id="initech", age_seconds=100)
    unseen = find_by_message(db.database, "m-1", limit=5)
    assert [(orphan.event_id, orphan.state) for orphan in unseen.orphans] == [(newer, "unseen"), (event, "unseen")]
    mailglass_reconcile.reconcile()
    swept = find_by_message(db.database, "<m-1>", limit=5)
    assert [(orphan.event_id, orphan.tenant_id, orphan.state) for orphan in swept.orphans] == [
        (newer, "initech", "tenant_mismatch"),
        (event, "globex", "tenant_mismatch"),
    ]
    by_message = find_by_message(db.database, "m-1", limit=1)
    assert ([orphan.event_id for orphan in by_message.orphans], by_message.number) == ([newer], 2)
    assert find_by_message(db.database, "nobody's", limit=5).orphans == []
