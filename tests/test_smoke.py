"""The shortest way from an orphan to a link."""

import factories
import mailglass_reconcile


def test_a_sweep_of_nothing_is_ok(db):
    """Nothing open, nothing linked."""
    assert mailglass_reconcile.reconcile().status == "ok"


def test_an_orphan_is_linked_to_its_delivery(db):
    """A Postmark webhook whose delivery has committed by now."""
    delivery = factories.delivery(db, "b7bc2f4a-e38e-4336-af7d-e6c392c2f817")
    orphan = factories.orphan(db, factories.postmark("B7BC2F4A-E38E-4336-AF7D-E6C392C2F817"))
    assert mailglass_reconcile.reconcile().linked == 1
    linked = db.value(
        "SELECT delivery_id::text FROM mailglass_events WHERE idempotency_key = :key", key=f"reconciled:{orphan}"
    )
    assert linked == delivery
