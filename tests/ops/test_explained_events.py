"""`explain` of events that are not orphans."""

from uuid import UUID

import factories
from mailglass_reconcile.ops.explanation import explain


def test_an_event_that_was_stored_with_its_delivery_is_attached(db):
    """Even if its writer asked for reconciliation; the delivery is named, and no places were read."""
    delivery = factories.delivery(db, "one")
    for asks in (True, False):
        row = factories.orphan_row(factories.postmark("one"), delivery_id=delivery, needs_reconciliation=asks)
        factories.insert(db, events=[row])
        found = explain(db.database, UUID(row["id"]))
        assert (found.state, found.delivery_id, found.candidate_ids) == ("attached", delivery, ())
        assert (found.provider, found.rule, found.reads) == ("postmark", None, ())


def test_an_event_that_asks_for_no_reconciliation_is_no_orphan(db):
    """Even if a delivery has its id."""
    factories.delivery(db, "one")
    event = factories.orphan(db, factories.postmark("one"), needs_reconciliation=False)
    found = explain(db.database, UUID(event))
    assert (found.state, found.delivery_id, found.candidate_ids) == ("no_orphan", None, ())
