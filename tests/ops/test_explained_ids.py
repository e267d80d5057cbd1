"""What `explain` says of ids that can never match, and of an orphan's own bounds."""

from uuid import UUID

import factories
from mailglass_reconcile.ops.explanation import explain


def test_an_id_that_mailglass_made_up_is_named_as_the_reason(db):
    """Mailglass stores no id of SparkPost's or Mailjet's."""
    factories.delivery(db, "mailglass-synthetic-1")
    orphan = factories.orphan(db, {"provider": "sparkpost", "transmission_id": 7})
    found = explain(db.database, UUID(orphan))
    assert found.state == "unmatched"
    assert "an id that it made up" in found.sentence
    other = factories.orphan(db, factories.postmark("x"))
    assert "made up" not in explain(db.database, UUID(other)).sentence


def test_an_orphan_that_arrived_in_the_far_future_is_explained(db):
    """A row whose arrival is infinite was once a traceback."""
    orphan = factories.orphan(db, factories.postmark("x"))
    db.run("UPDATE mailglass_open_orphans SET arrived_at = 'infinity'")
    assert explain(db.database, UUID(orphan)).state == "waiting"
    db.run("UPDATE mailglass_open_orphans SET arrived_at = now()::timestamp")
