"""The cost of a page and of `explain` in buffers: the same beside few and many orphans."""

from uuid import UUID

import pytest

import mailglass_reconcile
import meter
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.ops.orphans import find_by_message, load_page, make_filter

pytestmark = pytest.mark.version_independent

OPEN = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
SELECT gen_random_uuid(), 'acme', 'delivered', now(),
       jsonb_build_object('provider', 'postmark', 'message_id', :kind || n), true,
       now()::timestamp - interval '1 day' + n * interval '1 millisecond'
  FROM generate_series(1, :orphans) AS n
"""
RECONCILED = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, idempotency_key, inserted_at)
SELECT gen_random_uuid(), tenant_id, 'reconciled', now(), 'reconciled:' || id, now()
  FROM mailglass_events WHERE needs_reconciliation
"""
DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'acme', 'News', 'bulk', 'u' || n || '@example.com', 'example.com', 'sent' || n % 2,
       'dispatched', now(), now(), now()
  FROM generate_series(1, :deliveries) AS n
"""
MANY = 30_000


def cost(db, call):
    """Return the buffers and statements of a call."""
    with meter.statements(db.engine) as sent, meter.plans(db.engine) as plan:
        call()
    return plan.buffers, len(sent)


@pytest.mark.slow
def test_a_page_and_an_explanation_cost_the_same_beside_few_and_many(db):
    """Pages from the oldest, the newest and the middle, and an open event, are read."""
    for table in ("mailglass_events", "mailglass_open_orphans", "mailglass_open_orphan_ids"):
        db.run(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")  # its buffers would be counted
    observed = []
    for kind, orphans in (("few", 200), ("many", MANY)):
        db.run(OPEN, kind=kind, orphans=orphans)
        if kind == "few":
            db.run(RECONCILED)
            db.run(OPEN, kind="open", orphans=orphans)
        mailglass_reconcile.reconcile()
        db.run("ANALYZE")
        middle = load_page(db.database, make_filter(), limit=100).after
        observed.append(
            [
                cost(db, lambda: load_page(db.database, make_filter())),
                cost(db, lambda: load_page(db.database, make_filter())),
                cost(db, lambda after=middle: load_page(db.database, make_filter(), after=after)),
                cost(db, lambda event=middle: explain(db.database, UUID(event))),
            ]
        )
    for few, lots in zip(*observed, strict=True):
        assert max(lots[1], few[1]) <= 10
        assert lots[0] <= few[0] + 200 <= 1_500, observed


@pytest.mark.slow
def test_the_events_of_a_message_are_found_without_reading_other_deliveries(db):
    """Nor are all deliveries read that carry its id; an id that no delivery has costs as little."""
    db.run(DELIVERIES, deliveries=5_000)
    db.run("ANALYZE")
    for message_id in ("sent0", "nobody's"):
        touched, statements = cost(db, lambda id_=message_id: find_by_message(db.database, id_, limit=20))
        assert statements <= 10
        assert touched <= 300


@pytest.mark.slow
def test_expired_ones_cost_what_a_page_may_read_at_most(db):
    """The number of reconciled orphans in the ledger does not matter."""
    db.run(OPEN.replace("'1 day'", "'9 days'"), kind="old", orphans=3_000)
    db.run(RECONCILED)
    touched, statements = cost(db, lambda: load_page(db.database, make_filter(state="expired"), limit=50))
    assert statements <= 12
    assert touched <= 3_000 * 12
