import mailglass_reconcile


def test_a_sweep_of_nothing_is_ok(db):
    """Nothing open, nothing linked."""
    assert mailglass_reconcile.reconcile().status == "ok"
