"""A sweep of selected orphans: the statement of every sweep, with a filter."""

import pytest

import factories
import mailglass_reconcile
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops import targeted_sweep
from mailglass_reconcile.ops.targeted_sweep import Target


def dry_run(**target):
    """Return the counts of a dry run and the events that it would link."""
    sweep = targeted_sweep.prepare(Target(**target), dry_run=True)
    pairs = [pair for batch in sweep.batches() for pair in batch]
    return sweep.result, {event_id for event_id, _ in pairs}


def outdate(db, event_id, message_id):
    """Store a lower rank and a wrong id for an open orphan."""
    db.run("UPDATE mailglass_open_orphans SET rank = 1 WHERE event_id = CAST(:id AS uuid)", id=event_id)
    db.run("UPDATE mailglass_open_orphan_ids SET candidate_id = 'wrong' WHERE candidate_id = :id", id=message_id)


def test_what_passes_is_matched_now_and_nothing_else_is_counted(db):
    """Orphans in their grace are included; if an orphan has no keys, its provider is computed first."""
    factories.delivery(db, "m-1")
    linkable = factories.orphan(db, factories.postmark("m-1"), age_seconds=10)
    factories.orphan(db, factories.postmark("m-2"), age_seconds=100)
    factories.orphan(db, factories.sendgrid("m-3"), age_seconds=100)
    result, events = dry_run(provider="Postmark")
    assert (result.scanned, result.linked, result.unmatched, events) == (2, 1, 1, {linkable})
    assert dry_run(provider="sendgrid")[0].scanned == 1
    assert dry_run(provider="mailgun")[0].scanned == 0
    assert dry_run(max_age_seconds=60.0)[0].scanned == 1
    assert dry_run(min_age_seconds=60.0)[0].scanned == 2
    assert dry_run(max_age_seconds=60.0, provider="sendgrid")[0].scanned == 0


def test_what_the_last_sweep_left_is_counted_by_its_stored_state_and_provider(db):
    """It is not matched again before a delivery has one of its ids."""
    for id_, rows in (("m-1", factories.postmark), ("m-2", factories.sendgrid)):
        factories.orphan(db, rows(id_), age_seconds=100)
    mailglass_reconcile.reconcile()
    result, events = dry_run(provider="sendgrid")
    assert (result.scanned, result.unmatched, events) == (1, 1, set())


def test_an_orphan_with_outdated_keys_passes_by_those_that_are_computed_now(db):
    """The filters are the event's provider, and a delivery whose id only the current keys name."""
    orphan = factories.orphan(db, factories.postmark("m-1"), age_seconds=100)
    mailglass_reconcile.reconcile()
    outdate(db, orphan, "m-1")
    delivery = factories.delivery(db, "m-1")
    for target in ({"provider": "postmark"}, {"delivery_id": delivery}):
        result, events = dry_run(**target)
        assert (result.scanned, events) == (1, {orphan}), target
    assert targeted_sweep.prepare(Target(delivery_id=delivery)).run().linked == 1


def test_a_delivery_gets_its_own_events_whether_open_or_expired(db):
    """An event that matches another delivery of the message is left out; an event that matches none is included."""
    ada, eve = (factories.delivery(db, "m-1", recipient=f"{name}@example.com") for name in ("ada", "eve"))
    events = {
        name: factories.orphan(db, factories.postmark("m-1", recipient=f"{name}@example.com"), age_seconds=100)
        for name in ("ada", "eve", "bob")
    }
    old = factories.orphan(db, factories.postmark("m-1", recipient="ada@example.com"), age_seconds=9 * 86_400)
    mailglass_reconcile.prune()
    result, linkable = dry_run(delivery_id=ada)
    assert (result.scanned, result.recipient_mismatch, linkable) == (3, 1, {events["ada"], old})
    assert targeted_sweep.prepare(Target(delivery_id=ada)).run().linked == 2
    assert dry_run(delivery_id=eve)[1] == {events["eve"]}


def test_a_limit_is_how_many_are_linked(db):
    """The rest is counted."""
    rows = [factories.orphan_row(factories.postmark(f"m-{n}"), age_seconds=100) for n in range(3)]
    factories.insert(db, [factories.delivery_row(f"m-{n}") for n in range(3)], rows)
    result = targeted_sweep.prepare(Target(provider="postmark"), 2).run()
    assert (result.scanned, result.linked, result.skipped_limit) == (3, 2, 1)


def test_a_delivery_without_a_message_id_cannot_be_swept(db):
    """No event could match it."""
    delivery = factories.delivery(db, "m-1")
    db.run("UPDATE mailglass_deliveries SET provider_message_id = NULL")
    with pytest.raises(MailglassReconcileError, match="has no message id"):
        targeted_sweep.prepare(Target(delivery_id=delivery))
