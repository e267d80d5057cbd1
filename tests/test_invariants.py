"""The checker itself: whoever breaks an invariant is found out."""

import pytest

import factories
import invariants
import mailglass_reconcile

TAMPERING = [
    ("I1", "UPDATE mailglass_events SET idempotency_key = 'x' WHERE type = 'reconciled'"),
    ("I2", "UPDATE mailglass_deliveries SET delivered_at = now()::timestamp"),
    ("I3", "UPDATE mailglass_events SET metadata = '{}' WHERE needs_reconciliation"),
    ("I3", "DELETE FROM mailglass_events WHERE type <> 'reconciled'"),
    ("I4", "UPDATE mailglass_events SET id = gen_random_uuid() WHERE type = 'reconciled'"),
    ("I5", "UPDATE mailglass_events SET tenant_id = 'other' WHERE type = 'reconciled'"),
    ("I7", "UPDATE mailglass_deliveries SET terminal = false"),
    ("I13", "DELETE FROM mailglass_open_orphans"),
]


@pytest.mark.parametrize(("name", "sql"), TAMPERING, ids=lambda value: str(value)[:40])
def test_what_breaks_an_invariant_is_found(db, name, sql):
    """Each statement, run in the package's own scope with the ledger's guard off, fails the check it belongs to."""
    factories.delivery(db, "one")
    factories.orphan(db, factories.postmark("one"))
    factories.orphan(db, factories.postmark("two"))
    assert mailglass_reconcile.reconcile().linked == 1
    invariants.check(db, db.witness, holding=invariants.ALL - {"I4"})
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("SET LOCAL search_path = public, pg_temp")
        connection.exec_driver_sql(sql)
    with pytest.raises(AssertionError):
        invariants.check(db, db.witness, holding=frozenset({name}))
    db.broken.update(invariants.ALL)


def test_counts_that_do_not_add_up_are_found():
    """I11, on a result of hand."""
    with pytest.raises(AssertionError):
        invariants.check_counts([mailglass_reconcile.result.SweepResult(scanned=3, linked=2)])
